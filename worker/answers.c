#include "worker/answers.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

avl_status_t avl_answers_create(avl_request_t *request, const avl_config_t *config,
                                const avl_engine_limits_t *limits, avl_answers_t **answers_p) {
    avl_answers_t *answers = NULL;
    AVL_TRY(avl_alloc(1, sizeof *answers, "answers of a request", &answers));
    answers->source = -1;
    avl_status_t status = avl_alloc((size_t)request->choice_count, sizeof *answers->jobs,
                                    "answers of a request", &answers->jobs);
    if (status == AVL_OK)
        status = avl_alloc((size_t)config->model.text.vocab_rows, sizeof *answers->logits,
                           "logits of a request", &answers->logits);
    for (int32_t i = 0; i < request->choice_count && status == AVL_OK; i++) {
        status = avl_job_create(request, &request->choices[i], config, limits, &answers->jobs[i]);
        if (status != AVL_OK)
            break;
        answers->jobs[i]->answers = answers;
        answers->living++;
    }
    if (status == AVL_OK) {
        answers->request = request;
        *answers_p = answers;
        return AVL_OK;
    }
    int32_t made = answers->living++; /* so that the last of them does not take it along */
    for (int32_t i = 0; i < made; i++)
        avl_job_destroy(answers->jobs[i]);
    avl_answers_remove(answers, NULL);
    return status;
}

void avl_answers_remove(avl_answers_t *answers, avl_job_t *job) {
    for (int32_t i = 0; job != NULL && i < job->request->choice_count; i++)
        if (answers->jobs[i] == job)
            answers->jobs[i] = NULL;
    if (--answers->living > 0)
        return;
    avl_request_destroy(answers->request); /* NULL when it was not taken over */
    free(answers->jobs);
    free(answers->logits);
    free(answers);
}

bool avl_answers_can_share(const avl_job_t *job) {
    return job->answers != NULL && avl_sequence_shape_same_prompt(&job->shape, &job->shape);
}

bool avl_answers_being_read(const avl_job_t *job) {
    return job->answers != NULL && job->answers->reader != NULL && job->answers->reader != job;
}

avl_prompt_match_t avl_answers_match(const avl_job_t *job) {
    const avl_answers_t *answers = job->answers;
    if (answers == NULL || answers->source < 0)
        return (avl_prompt_match_t){.sequence = -1};
    return (avl_prompt_match_t){answers->source, job->shape.prompt_rows, answers->logits};
}

int64_t avl_answers_read(avl_answers_t *answers, avl_job_t *job, const float *logits,
                         int32_t vocab_rows) {
    if (answers->reader == job)
        answers->reader = NULL;
    if (answers->source >= 0 || answers->living < 2 || !avl_answers_can_share(job))
        return 0;
    AVL_ASSERT(answers->sharers == 0);
    memcpy(answers->logits, logits, (size_t)vocab_rows * sizeof *logits);
    answers->source = job->sequence;
    answers->pages = avl_job_prompt_pages(job);
    answers->reuse = job->reuse;
    answers->first_step_ns = job->first_step_ns;
    answers->encode_ns = job->encode_ns;
    avl_answers_share(job);
    return answers->pages;
}

void avl_answers_share(avl_job_t *job) {
    avl_answers_t *answers = job->answers;
    job->forks = false;
    job->shares = true;
    job->pages_shared = answers->pages;
    answers->sharers++;
    if (job->first_step_ns == 0) {
        job->reuse = answers->reuse;
        job->first_step_ns = answers->first_step_ns;
        job->encode_ns = answers->encode_ns;
    }
}

int64_t avl_answers_leave(avl_job_t *job, bool *recall_p) {
    avl_answers_t *answers = job->answers;
    bool reads = answers->reader == job, held = job->shares;
    if (reads)
        answers->reader = NULL;
    job->shares = false;
    job->pages_shared = 0;
    if (held && answers->source == job->sequence) {
        answers->source = -1;
        for (int32_t i = 0; i < job->request->choice_count && answers->source < 0; i++)
            if (answers->jobs[i] != NULL && answers->jobs[i]->shares)
                answers->source = answers->jobs[i]->sequence;
    }
    *recall_p = reads || (held && answers->source < 0);
    if (!held || --answers->sharers > 0)
        return 0;
    int64_t pages = answers->pages;
    answers->pages = 0;
    return pages;
}
