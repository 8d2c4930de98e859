// A borrowed view of a tensor that Python owns: what the ops check and what kernels read.
#pragma once

#include <cstdint>
#include <optional>

namespace qdengine {

enum class DType : uint8_t { f32, bf16, f16, i32, i8, u8, f8, other };  // f8: float8_e4m3fn
enum class Device : uint8_t { cpu, cuda, other };

constexpr int kMaxDims = 4;

// Where a kernel runs: the CUDA stream that torch works on, and its device. Nothing on a CPU.
struct Stream {
  int device = 0;
  void* handle = nullptr;
};

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::other;
  Device device = Device::other;
  int ndim = 0;
  int64_t shape[kMaxDims] = {};
  int64_t stride[kMaxDims] = {};  // in elements
  Stream stream;

  int64_t dim(int i) const { return shape[i]; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

using OptionalTensor = std::optional<Tensor>;

inline const char* name(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float32";
    case DType::bf16: return "bfloat16";
    case DType::f16: return "float16";
    case DType::i32: return "int32";
    case DType::i8: return "int8";
    case DType::u8: return "uint8";
    case DType::f8: return "float8_e4m3fn";
    default: return "another dtype";
  }
}

// Bytes of a number.
inline int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32: return 4;
    case DType::bf16:
    case DType::f16: return 2;
    default: return 1;
  }
}

}  // namespace qdengine
