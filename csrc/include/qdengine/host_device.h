// QDENGINE_HD: a function for host and device. Static, because a host object is compiled once per instruction set and the linker
// must not keep one copy for all of them.
#pragma once

#ifdef __CUDACC__
#define QDENGINE_HD __host__ __device__ __forceinline__
#else
#define QDENGINE_HD static inline
#endif
