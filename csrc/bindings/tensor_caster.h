// torch.Tensor -> qdengine::Tensor through the DLPack C exchange API (torch >= 2.11): a view, about 0.3 us, no libtorch.
#pragma once

#include <pybind11/pybind11.h>
#include <dlpack/dlpack.h>

#include "qdengine/tensor.h"

namespace qdengine::bindings {

// The exchange table of a tensor type; null when the type has none. Cached for the last type seen.
inline const DLPackExchangeAPI* exchange_api(PyTypeObject* type) {
  static PyTypeObject* seen = nullptr;
  static const DLPackExchangeAPI* api = nullptr;
  if (type == seen) return api;
  pybind11::object capsule = pybind11::getattr(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__", pybind11::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  seen = type;
  return api;
}

inline DType dtype_of(DLDataType type) {
  if (type.lanes != 1) return DType::other;
  if (type.code == kDLFloat && type.bits == 32) return DType::f32;
  if (type.code == kDLFloat && type.bits == 16) return DType::f16;
  if (type.code == kDLBfloat && type.bits == 16) return DType::bf16;
  if (type.code == kDLInt && type.bits == 32) return DType::i32;
  if (type.code == kDLInt && type.bits == 8) return DType::i8;
  if (type.code == kDLUInt && type.bits == 8) return DType::u8;
  if (type.code == kDLFloat8_e4m3fn && type.bits == 8) return DType::f8;
  return DType::other;
}

inline Tensor view(const DLTensor& source, const DLPackExchangeAPI& api) {
  if (source.ndim > kMaxDims) throw pybind11::value_error("a tensor has more than 4 dimensions");
  Tensor t;
  t.data = static_cast<char*>(source.data) + source.byte_offset;
  t.dtype = dtype_of(source.dtype);
  t.ndim = source.ndim;
  t.stream.device = source.device.device_id;
  int64_t dense = 1;
  for (int i = source.ndim - 1; i >= 0; --i) {
    t.shape[i] = source.shape[i];
    t.stride[i] = source.strides ? source.strides[i] : dense;
    dense *= source.shape[i];
  }
  if (source.device.device_type == kDLCPU) {
    t.device = Device::cpu;
  } else if (source.device.device_type == kDLCUDA) {
    t.device = Device::cuda;
    if (api.current_work_stream(kDLCUDA, t.stream.device, &t.stream.handle) != 0) throw pybind11::error_already_set();
  }
  return t;
}

}  // namespace qdengine::bindings

namespace pybind11::detail {

template <>
struct type_caster<qdengine::Tensor> {
  PYBIND11_TYPE_CASTER(qdengine::Tensor, const_name("torch.Tensor"));

  bool load(handle source, bool) {
    const DLPackExchangeAPI* api = qdengine::bindings::exchange_api(Py_TYPE(source.ptr()));
    if (!api) return false;
    DLTensor borrowed;
    if (api->dltensor_from_py_object_no_sync(source.ptr(), &borrowed) != 0) throw error_already_set();
    value = qdengine::bindings::view(borrowed, *api);
    return true;
  }
};

}  // namespace pybind11::detail
