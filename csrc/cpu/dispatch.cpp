// Chooses the CPU kernels once: the best instruction set of this machine, or the one that QDENGINE_ISA names.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __x86_64__
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "qdengine/kernels.h"

namespace qdengine {

#define QDENGINE_DECLARE(isa) \
  namespace isa {             \
  extern const Kernels table; \
  }
#ifdef QDENGINE_EMULATED  // for tests: the one instruction set that this names, of plain code
QDENGINE_DECLARE(QDENGINE_EMULATED)
#else
QDENGINE_DECLARE(generic)
#ifdef __x86_64__
QDENGINE_DECLARE(avx2)
QDENGINE_DECLARE(avx2_vnni)
QDENGINE_DECLARE(avx512)
QDENGINE_DECLARE(avx512_vnni)
QDENGINE_DECLARE(avx512_bf16)
QDENGINE_DECLARE(amx)
#endif
#endif

namespace {

struct Choice {
  const Kernels* table;
  bool usable;
  bool (*permitted)() = nullptr;  // asked when it is about to be chosen
};

bool take(const Choice& choice) { return choice.usable && (!choice.permitted || choice.permitted()); }

#if defined(__x86_64__) && !defined(QDENGINE_EMULATED)
// Whether there are AMX tiles with products of int8 and bfloat16.
bool has_tiles() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kAll = kBf16 | kTile | kInt8;
  return (d & kAll) == kAll;
}

// Whether the system lets this process use them. It cannot give them back, so only a process that will is to ask.
bool may_use_tiles() {
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// Best last.
std::vector<Choice> choices() {
#ifdef QDENGINE_EMULATED
  return {{&QDENGINE_EMULATED::table, true}};
#else
  std::vector<Choice> all = {{&generic::table, true}};
#ifdef __x86_64__
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  all.push_back({&avx2::table, avx2});
  all.push_back({&avx2_vnni::table, avx2 && __builtin_cpu_supports("avxvnni")});
  all.push_back({&avx512::table, avx512});
  all.push_back({&avx512_vnni::table, vnni});
  all.push_back({&avx512_bf16::table, bf16});
  all.push_back({&amx::table, bf16 && has_tiles(), may_use_tiles});
#endif
  return all;
#endif
}

const Kernels& resolve() {
  const std::vector<Choice> all = choices();
  const char* forced = std::getenv("QDENGINE_ISA");
  if (forced && *forced) {
    for (const Choice& choice : all) {
      if (std::strcmp(choice.table->isa, forced) != 0) continue;
      if (!take(choice)) throw std::runtime_error(std::string("QDENGINE_ISA=") + forced + ": this CPU does not have it");
      return *choice.table;
    }
    throw std::runtime_error(std::string("QDENGINE_ISA=") + forced + ": expected generic, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16 or amx");
  }
  auto best = all.rbegin();
  while (!take(*best)) ++best;
  return *best->table;
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
