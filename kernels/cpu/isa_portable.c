#define AVL_ISA_TABLE avl_cpu_portable
#define AVL_ISA_NAME "portable"
#define AVL_ISA_LABEL "portable C"
#define AVL_ISA_FAST_DTYPE AVL_DTYPE_F32
#define AVL_ISA_LIBRARY_F32 0
#define AVL_ISA_LIBRARY_BF16 0
#include "kernels/cpu/isa.inc.h"
