// The only place with pybind11. The ops release the GIL: arguments are views whose owners the caller holds.
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <vector>

#include "../cpu/pool.h"
#include "../ops/layers.h"
#include "qdengine/kernels.h"
#include "qdengine/ops.h"
#include "tensor_caster.h"

namespace py = pybind11;
namespace ops = qdengine::ops;

namespace qdengine {
std::vector<const char*> cpu_isas();
}

// Of a layer: weight and bias, or packed weight and bias, of norm1, qkv, out, norm2, up and down; then q_norm and k_norm.
using LayerTensors = std::array<qdengine::OptionalTensor, 14>;

static ops::Layer layer_of(const LayerTensors& t) {
  const auto norm = [&](size_t at) { return ops::Norm{t[at].value(), t[at + 1]}; };
  const auto product = [&](size_t at) { return ops::Product{t[at].value(), t[at + 1]}; };
  return {.norm1 = norm(0), .norm2 = norm(6), .qkv = product(2), .out = product(4), .up = product(8), .down = product(10),
          .q_norm = t[12], .k_norm = t[13]};
}

static void bind_layers(py::module_& m) {
  using qdengine::OptionalTensor;
  using qdengine::Tensor;
  const auto free_gil = py::call_guard<py::gil_scoped_release>();
  py::class_<ops::Layers>(m, "Layers")
      .def(py::init([](int64_t heads, int64_t kv_heads, int64_t head_width, int64_t ffn_width, bool gated, bool int8, double eps,
                       const Tensor& embed, const OptionalTensor& places, const OptionalTensor& cos, const OptionalTensor& sin,
                       const std::vector<LayerTensors>& tensors, const Tensor& norm, const OptionalTensor& norm_bias) {
             std::vector<ops::Layer> layers;
             for (const LayerTensors& each : tensors) layers.push_back(layer_of(each));
             return std::make_unique<ops::Layers>(
                 ops::DecoderShape{heads, kv_heads, head_width, ffn_width, gated, int8, eps}, embed, places, cos, sin,
                 std::move(layers), ops::Norm{norm, norm_bias});
           }),
           py::arg("heads"), py::arg("kv_heads"), py::arg("head_width"), py::arg("ffn_width"), py::arg("gated"), py::arg("int8"),
           py::arg("eps"), py::arg("embed"), py::arg("places"), py::arg("cos"), py::arg("sin"), py::arg("layers"), py::arg("norm"),
           py::arg("norm_bias"))
      .def("forward",
           [](ops::Layers& self, const Tensor& out, const OptionalTensor& scales, const Tensor& ids, const Tensor& positions,
              const Tensor& slots, const Tensor& rows, const Tensor& block_tables, const Tensor& kv_lens, const Tensor& q_indptr,
              const std::vector<Tensor>& keys, const std::vector<Tensor>& values, const std::vector<OptionalTensor>& key_scales,
              const std::vector<OptionalTensor>& value_scales) {
             self.forward(out, scales, {ids, positions, slots, rows, block_tables, kv_lens, q_indptr},
                          {keys, values, key_scales, value_scales});
           },
           py::arg("out"), py::arg("scales"), py::arg("ids"), py::arg("positions"), py::arg("slots"), py::arg("rows"),
           py::arg("block_tables"), py::arg("kv_lens"), py::arg("q_indptr"), py::arg("keys"), py::arg("values"),
           py::arg("key_scales"), py::arg("value_scales"), free_gil)
      .def("seconds", &ops::Layers::seconds, free_gil);
}

static py::dict build_info() {
  py::dict info;
  info["version"] = QDENGINE_VERSION;
  info["isas"] = qdengine::cpu_isas();
  info["isa"] = qdengine::cpu_kernels().isa;
  info["largest_pair"] = qdengine::cpu_kernels().largest_pair;
  info["gates"] = qdengine::cpu_kernels().gates;
  info["cuda"] = qdengine::cuda_kernels() != nullptr;
  py::list archs;
#ifdef QDENGINE_WITH_CUDA
  for (py::handle arch : py::str(QDENGINE_CUDA_ARCHS).attr("split")(",")) archs.append(arch);
#endif
  info["cuda_archs"] = archs;
  return info;
}

PYBIND11_MODULE(_native, m) {
  m.doc() = "qdengine's compiled ops; the contract is qdengine.ops.reference.";
  const auto free_gil = py::call_guard<py::gil_scoped_release>();
  m.def("build_info", &build_info, "Version, CPU instruction sets built and resolved, CUDA architectures built.");
  m.def("rms_norm", &ops::rms_norm, py::arg("out"), py::arg("scales"), py::arg("x"), py::arg("weight"), py::arg("eps"),
        free_gil);
  m.def("layer_norm", &ops::layer_norm, py::arg("out"), py::arg("scales"), py::arg("x"), py::arg("weight"), py::arg("bias"),
        py::arg("eps"), free_gil);
  m.def("add_rms_norm", &ops::add_rms_norm, py::arg("out"), py::arg("scales"), py::arg("residual"), py::arg("x"),
        py::arg("weight"), py::arg("eps"), free_gil);
  m.def("add_layer_norm", &ops::add_layer_norm, py::arg("out"), py::arg("scales"), py::arg("residual"), py::arg("x"),
        py::arg("weight"), py::arg("bias"), py::arg("eps"), free_gil);
  m.def("silu_mul", &ops::silu_mul, py::arg("out"), py::arg("scales"), py::arg("gate_up"), free_gil);
  m.def("gelu", &ops::gelu, py::arg("out"), py::arg("scales"), py::arg("x"), free_gil);
  m.def("quantize", &ops::quantize, py::arg("out"), py::arg("scales"), py::arg("x"), free_gil);
  m.def("dequantize", &ops::dequantize, py::arg("out"), py::arg("sums"), py::arg("scales"), py::arg("weight_scales"),
        py::arg("bias"), free_gil);
  m.def("rope_append", &ops::rope_append, py::arg("q"), py::arg("k_cache"), py::arg("v_cache"), py::arg("k_scales"),
        py::arg("v_scales"), py::arg("qkv"), py::arg("positions"), py::arg("slots"), py::arg("cos"), py::arg("sin"),
        py::arg("q_weight"), py::arg("k_weight"), py::arg("eps"), free_gil);
  m.def("paged_attention", &ops::paged_attention, py::arg("out"), py::arg("q"), py::arg("k_cache"), py::arg("v_cache"),
        py::arg("k_scales"), py::arg("v_scales"), py::arg("workspace"), py::arg("block_tables"), py::arg("kv_lens"),
        py::arg("q_indptr"), py::arg("scale"), free_gil);
  m.def("greedy_argmax", &ops::greedy_argmax, py::arg("out"), py::arg("logits"), free_gil);
  m.def("allowed_argmax", &ops::allowed_argmax, py::arg("chosen"), py::arg("logits"), py::arg("row_indptr"), py::arg("tokens"),
        py::arg("ranks"), py::arg("bounds"), py::arg("drafts"), py::arg("verbatim"), py::arg("twins"), py::arg("stop_ids"),
        py::arg("break_id"), free_gil);
  m.def("ngram_propose", &ops::ngram_propose, py::arg("drafts"), py::arg("draft_lens"), py::arg("tokens"),
        py::arg("ranks"), py::arg("bounds"), py::arg("limits"), free_gil);
  m.def("verify_draft", &ops::verify_draft, py::arg("out"), py::arg("out_lens"), py::arg("drafts"), py::arg("draft_lens"),
        py::arg("sampled"), py::arg("row_indptr"), free_gil);
  m.def("pack_step", &ops::pack_step, py::arg("ids"), py::arg("positions"), py::arg("slots"), py::arg("rows"),
        py::arg("kv_lens"), py::arg("q_indptr"), py::arg("row_indptr"), py::arg("drafted"), py::arg("tokens"),
        py::arg("bounds"), py::arg("computed"), py::arg("most"), py::arg("reach"), py::arg("drafts"), py::arg("draft_lens"),
        py::arg("block_tables"), py::arg("block_tokens"), free_gil);
  m.def("commit_step", &ops::commit_step, py::arg("tokens"), py::arg("bounds"), py::arg("computed"), py::arg("finished"),
        py::arg("kept"), py::arg("out"), py::arg("out_lens"), py::arg("drafted"), py::arg("q_indptr"), py::arg("ends"),
        py::arg("stop_ids"), free_gil);
  m.def("admit_rows", &ops::admit_rows, py::arg("tokens"), py::arg("ranks"), py::arg("bounds"), py::arg("computed"),
        py::arg("finished"), py::arg("ends"), py::arg("admitted"), py::arg("staged"), free_gil);
  m.def("packed_bytes", &ops::packed_bytes, py::arg("weight"));
  m.def("pack_linear", &ops::pack_linear, py::arg("packed"), py::arg("weight"), py::arg("weight_scales"), free_gil);
  m.def("linear", &ops::linear, py::arg("out"), py::arg("x"), py::arg("scales"), py::arg("packed"), py::arg("bias"),
        py::arg("gated"), free_gil);
  bind_layers(m);
  m.def("usable_threads", &qdengine::usable_threads, "Threads that this process may keep busy: its affinity, quota and OMP_NUM_THREADS.");
  m.def("set_thread_limit", &qdengine::set_thread_limit, py::arg("limit"),
        "Most threads of the CPU ops that this thread calls; 0: all that are usable.");
}
