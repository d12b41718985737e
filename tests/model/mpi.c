/* One rank of an MPI job: runs a case of the shipped model and of a GQA model. Prints `rank R of P:
 * model passed`. */
#include <stdio.h>
#include <string.h>

#include "tests/model/dense_run.h"

static avl_status_t run(avl_group_t *group, const char *path, int token_count) {
    avl_case_t data;
    avl_dense_source_t source;
    avl_dense_result_t result;
    AVL_TRY(avl_case_load(path, &data));
    AVL_TRY(avl_dense_open(data.model_path, &source));
    if (token_count > data.greedy_count)
        token_count = data.greedy_count;
    AVL_TRY(avl_dense_run_group(&source, group, 1, AVL_DTYPE_F32, &data, 0, 2, NULL, token_count,
                                &result));
    avl_status_t status = AVL_OK;
    if (memcmp(result.tokens, data.greedy_ids, (size_t)token_count * sizeof(int32_t)) != 0)
        status = avl_fail(AVL_ERR_INTERNAL, "%s: other tokens than the reference's", path);
    double distance = avl_dense_distance(result.logits, data.first_logits, data.vocab_rows);
    if (avl_group_rank(group) == 0 && !(distance <= 1e-3))
        status = avl_fail(AVL_ERR_INTERNAL, "%s: first logits off by %g", path, distance);
    avl_dense_release(&result);
    avl_dense_close(&source);
    avl_case_release(&data);
    return status;
}

int main(void) {
    avl_group_t *group;
    avl_status_t status = avl_group_open_mpi(&group);
    int rank = -1, ranks = -1;
    if (status == AVL_OK) {
        rank = avl_group_rank(group);
        ranks = avl_group_ranks(group);
        status = run(group, AVL_SOURCE_DIR "/models/cases/00", 64);
        if (status == AVL_OK)
            status = run(group, AVL_SOURCE_DIR "/tests/data/cases/next-gqa/02", 16);
        avl_group_close(group);
    }
    printf("rank %d of %d: model %s%s\n", rank, ranks,
           status == AVL_OK ? "passed" : "FAILED: ", status == AVL_OK ? "" : avl_status_detail());
    return status == AVL_OK ? 0 : 1;
}
