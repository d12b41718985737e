/* kernels/cpu/isa.inc.h: the body of an instruction-set file. The includer defines AVL_ISA_TABLE,
 * AVL_ISA_NAME, AVL_ISA_LABEL, AVL_ISA_FAST_DTYPE, AVL_ISA_LIBRARY_F32 and AVL_ISA_LIBRARY_BF16;
 * its compiler flags choose the instructions. */
#include "kernels/cpu/device.h"
#include "kernels/cpu/vector.h"

#include "kernels/cpu/select.inc.h" /* decode attention chooses */

#include "kernels/cpu/attention.inc.h"
#include "kernels/cpu/decode_attention.inc.h"
#include "kernels/cpu/elementwise.inc.h"
#include "kernels/cpu/linear.inc.h"
#include "kernels/cpu/text.inc.h"

const avl_cpu_kernels_t AVL_ISA_TABLE = {
    .name = AVL_ISA_NAME,
    .label = AVL_ISA_LABEL,
    .fast_dtype = AVL_ISA_FAST_DTYPE,
    .matmul_library_f32 = AVL_ISA_LIBRARY_F32,
    .matmul_library_bf16 = AVL_ISA_LIBRARY_BF16,
    .linear = linear_block,
    .linear_finish = linear_finish,
    .norm = norm_row,
    .rope = rope_row,
    .activation = activation_range,
    .gated = gated_row,
    .add = add_range,
    .embed = embed_row,
    .argmax = argmax_row,
    .attention = attention_block,
    .decode_score = decode_score,
    .decode_choose = decode_choose,
    .decode_chunk = decode_chunk,
    .decode_merge = decode_merge,
    .decode_weights = decode_weights,
    .choose = choose_best,
    .text_weights = text_weights,
};
