#include "dot.h"
#include "qdengine/kernels.h"

#define QDENGINE_STRING_OF(x) #x
#define QDENGINE_STRING(x) QDENGINE_STRING_OF(x)

namespace qdengine::QDENGINE_ISA {

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
bool linear(const LinearArgs&);
int64_t pack_linear(const PackLinearArgs&);

extern const Kernels table;
const Kernels table = {QDENGINE_STRING(QDENGINE_ISA), norm, silu_mul, gelu, quantize, dequantize, rope_append,
                       paged_attention, greedy_argmax, allowed_argmax, ngram_propose, verify_draft, pack_step, commit_step, admit_rows,
                       linear, pack_linear, kLargestPair, kGates};

}  // namespace qdengine::QDENGINE_ISA
