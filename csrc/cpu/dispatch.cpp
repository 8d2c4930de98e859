// Chooses the CPU kernels once: the best instruction set of this machine, or the one that QDENGINE_ISA names.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "qdengine/kernels.h"

namespace qdengine {

#define QDENGINE_DECLARE(isa) \
  namespace isa {             \
  extern const Kernels table; \
  }
QDENGINE_DECLARE(generic)
#ifdef __x86_64__
QDENGINE_DECLARE(avx2)
QDENGINE_DECLARE(avx512)
#endif

namespace {

struct Choice {
  const Kernels* table;
  bool usable;
};

// Best last.
std::vector<Choice> choices() {
  std::vector<Choice> all = {{&generic::table, true}};
#ifdef __x86_64__
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  all.push_back({&avx2::table, avx2});
  all.push_back({&avx512::table, avx512});
#endif
  return all;
}

const Kernels& resolve() {
  const std::vector<Choice> all = choices();
  const char* forced = std::getenv("QDENGINE_ISA");
  if (forced && *forced) {
    for (const Choice& choice : all) {
      if (std::strcmp(choice.table->isa, forced) != 0) continue;
      if (!choice.usable) throw std::runtime_error(std::string("QDENGINE_ISA=") + forced + ": this CPU does not have it");
      return *choice.table;
    }
    throw std::runtime_error(std::string("QDENGINE_ISA=") + forced + ": expected generic, avx2 or avx512");
  }
  const Kernels* best = all.front().table;
  for (const Choice& choice : all) {
    if (choice.usable) best = choice.table;
  }
  return *best;
}

}  // namespace

std::vector<const char*> cpu_isas() {
  std::vector<const char*> names;
  for (const Choice& choice : choices()) names.push_back(choice.table->isa);
  return names;
}

const Kernels& cpu_kernels() {
  static const Kernels& table = resolve();
  return table;
}

#ifndef QDENGINE_WITH_CUDA
const Kernels* cuda_kernels() { return nullptr; }
#endif

const Kernels& kernels_for(const Tensor& t) {
  if (t.device == Device::cpu) return cpu_kernels();
  if (t.device == Device::cuda) {
    if (const Kernels* table = cuda_kernels()) return *table;
    throw std::runtime_error("this build of qdengine has no CUDA kernels: rebuild with QDENGINE_CUDA=ON");
  }
  throw std::runtime_error("tensors must be on a CPU or CUDA device");
}

}  // namespace qdengine
