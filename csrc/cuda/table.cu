#include "qdengine/kernels.h"

namespace qdengine {
namespace cuda {

void norm(const NormArgs&, Stream);
void silu_mul(const ActivationArgs&, Stream);
void gelu(const ActivationArgs&, Stream);
void quantize(const ActivationArgs&, Stream);
void dequantize(const DequantizeArgs&, Stream);
void rope_append(const RopeAppendArgs&, Stream);
void paged_attention(const AttentionArgs&, Stream);
void greedy_argmax(const ArgmaxArgs&, Stream);
void allowed_argmax(const AllowedArgs&, Stream);
void ngram_propose(const ProposeArgs&, Stream);
void verify_draft(const VerifyArgs&, Stream);
void pack_step(const PackArgs&, Stream);
void commit_step(const CommitArgs&, Stream);
void admit_rows(const AdmitArgs&, Stream);

}  // namespace cuda

const Kernels* cuda_kernels() {
  static const Kernels table = {"cuda",
                                cuda::norm,
                                cuda::silu_mul,
                                cuda::gelu,
                                cuda::quantize,
                                cuda::dequantize,
                                cuda::rope_append,
                                cuda::paged_attention,
                                cuda::greedy_argmax,
                                cuda::allowed_argmax,
                                cuda::ngram_propose,
                                cuda::verify_draft,
                                cuda::pack_step,
                                cuda::commit_step,
                                cuda::admit_rows};
  return &table;
}

}  // namespace qdengine
