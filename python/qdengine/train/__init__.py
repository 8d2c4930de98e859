"""Making students: labels, supervised fine-tuning, preferences, distillation, export. Needs `qdengine[train]`."""
