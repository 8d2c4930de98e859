// Memory that a kernel's threads keep.
#pragma once

#include <stdlib.h>

#include "simd.h"

namespace qdengine::QDENGINE_ISA {
namespace {

// Memory of a thread, grown as needed and kept until the thread ends.
void* thread_memory(int64_t bytes) {
  struct Held {
    void* memory = nullptr;
    int64_t size = 0;
    ~Held() { free(memory); }
  };
  static thread_local Held held;
  if (bytes > held.size) {
    free(held.memory);
    held.size = divide_up(bytes, 4096) * 4096;
    held.memory = aligned_alloc(64, static_cast<size_t>(held.size));
    if (!held.memory) abort();
  }
  return held.memory;
}

}  // namespace
}  // namespace qdengine::QDENGINE_ISA
