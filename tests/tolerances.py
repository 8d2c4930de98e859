"""How far an op may be from the float64 result of the same rounded inputs: (relative, absolute), by dtype."""

import torch

TOLERANCES = {torch.float32: (2e-5, 2e-6), torch.bfloat16: (2**-8, 2e-5), torch.float16: (2**-10, 2e-5)}
