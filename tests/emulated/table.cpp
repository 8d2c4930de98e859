// The extension's ops over emulated CUDA kernels, for tensors of a CPU.
#include <vector>

#include "qdengine/kernels.h"

namespace qdengine {
namespace cuda {

alignas(128) char shared[256 << 10];  // dynamic shared memory

void rope_append(const RopeAppendArgs&, Stream);
void paged_attention(const AttentionArgs&, Stream);

}  // namespace cuda

const Kernels& cpu_kernels() {
  static const Kernels table = [] {
    Kernels kernels = {};
    kernels.isa = "emulated";
    kernels.rope_append = cuda::rope_append;
    kernels.paged_attention = cuda::paged_attention;
    return kernels;
  }();
  return table;
}
const Kernels& kernels_for(const Tensor&) { return cpu_kernels(); }
const Kernels* cuda_kernels() { return nullptr; }
std::vector<const char*> cpu_isas() { return {}; }

}  // namespace qdengine
