#include "qdengine/kernels.h"

#define QDENGINE_STRING_OF(x) #x
#define QDENGINE_STRING(x) QDENGINE_STRING_OF(x)

namespace qdengine::QDENGINE_ISA {

void norm(const NormArgs&, void*);
void silu_mul(const ActivationArgs&, void*);
void gelu(const ActivationArgs&, void*);
void rope_append(const RopeAppendArgs&, void*);
void paged_attention(const AttentionArgs&, void*);
void greedy_argmax(const ArgmaxArgs&, void*);
void ngram_propose(const ProposeArgs&, void*);
void verify_draft(const VerifyArgs&, void*);

extern const Kernels table;
const Kernels table = {QDENGINE_STRING(QDENGINE_ISA), norm, silu_mul, gelu, rope_append, paged_attention,
                       greedy_argmax, ngram_propose, verify_draft};

}  // namespace qdengine::QDENGINE_ISA
