/* tools/gpu_check/nccl.c: the GPUs of this host joined through the real NCCL, ranks as threads: the
 * sums that ranks exchange, and how long one takes. With one GPU NCCL is loaded, begun and ended,
 * and adds up one rank.
 *
 * Every line of output is one JSON object. Ends with 77 where there is no NCCL, after saying so. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "comm/group.h"
#include "kernels/device.h"
#include "tests/cuda/devices.h"
#ifdef AVL_CUDA_SHIM
#include "tests/cuda/shim/shim.h"
#endif

enum { RANKS_MAX = 8, COUNT = 64 * 4096, WARM_UP = 20, ROUNDS = 200, LEFT_OUT = 77 };

typedef struct rank {
    int index, ranks;
    avl_group_t *group;
    avl_device_t *device;
    float *memory;
    double us;
    avl_status_t status;
    char detail[AVL_STATUS_DETAIL_BYTES];
    char name[64];
} rank_t;

static float numbers[COUNT];

static avl_status_t watch(void *context, int64_t waited_ns) {
    rank_t *rank = context;
    return avl_group_watch_gpus(rank->group, waited_ns);
}

static avl_status_t sum_up(rank_t *rank, int merges) {
    static _Thread_local float sums[COUNT];
    avl_device_t *device = rank->device;
    for (int i = 0; i < COUNT; i++)
        sums[i] = numbers[i] + (float)rank->index;
    AVL_TRY(device->ops->upload(device, rank->memory, sums, sizeof sums));
    AVL_TRY(merges ? avl_group_gpus_merge(rank->group, rank->memory, COUNT)
                   : avl_group_gpus_all_reduce(rank->group, rank->memory, COUNT));
    AVL_TRY(device->ops->download(device, sums, rank->memory, sizeof sums));
    /* Small whole numbers: exact in every order. */
    for (int i = 0; i < COUNT; i++) {
        float expected =
            (float)rank->ranks * numbers[i] + (float)(rank->ranks * (rank->ranks - 1) / 2);
        if (sums[i] != expected)
            return avl_fail(AVL_ERR_INTERNAL, "rank %d: sum %d is %g, expected %g", rank->index, i,
                            (double)sums[i], (double)expected);
    }
    return AVL_OK;
}

/* One after the other on the stream, as layers enqueue them. */
static avl_status_t measure(rank_t *rank) {
    avl_device_t *device = rank->device;
    int64_t begin_ns = 0;
    for (int round = -WARM_UP; round < ROUNDS; round++) {
        if (round == 0) {
            AVL_TRY(device->ops->synchronize(device));
            begin_ns = avl_clock_now_ns();
        }
        AVL_TRY(avl_group_gpus_all_reduce(rank->group, rank->memory, COUNT));
    }
    AVL_TRY(device->ops->synchronize(device));
    rank->us = (double)(avl_clock_now_ns() - begin_ns) / 1e3 / ROUNDS;
    return AVL_OK;
}

static avl_status_t join(rank_t *rank) {
    avl_device_t *device = rank->device;
    avl_group_gpu_t gpu = {.stream = device->stream};
    memcpy(gpu.id, device->gpu_id, sizeof gpu.id);
    device->watch = watch;
    device->watch_context = rank;
    avl_group_set_timeout(rank->group, 30 * AVL_NS_PER_S);
    AVL_TRY(avl_group_join_gpus(rank->group, &gpu));
    snprintf(rank->name, sizeof rank->name, "%s", avl_group_gpus_name(rank->group));
    AVL_TRY(sum_up(rank, 0));
    AVL_TRY(sum_up(rank, 1));
    return measure(rank);
}

static avl_status_t open_gpu(rank_t *rank) {
#ifdef AVL_CUDA_SHIM
    avl_shim_configure(&(avl_shim_options_t){.devices = 1});
#endif
    AVL_TRY(avl_cuda_device_open(rank->index, &rank->device));
    void *memory;
    AVL_TRY(rank->device->ops->allocate(rank->device, COUNT * sizeof(float), "sums", &memory));
    rank->memory = memory;
    return AVL_OK;
}

static void *live(void *argument) {
    rank_t *rank = argument;
    rank->status = open_gpu(rank);
    if (rank->status == AVL_OK)
        rank->status = join(rank);
    if (rank->status != AVL_OK)
        snprintf(rank->detail, sizeof rank->detail, "%s", avl_status_detail());
    avl_group_leave_gpus(rank->group);
    if (rank->memory != NULL)
        rank->device->ops->release(rank->device, rank->memory);
    if (rank->device != NULL)
        avl_device_close(rank->device);
    return NULL;
}

static int report(const rank_t *ranks, int count) {
    for (int i = 0; i < count; i++) {
        if (ranks[i].status == AVL_OK)
            continue;
        printf("%s: %s\n", avl_status_name(ranks[i].status), ranks[i].detail);
        return ranks[i].status == AVL_ERR_UNSUPPORTED ? LEFT_OUT : 1;
    }
    printf("{\"name\": \"all-reduce of 64 x 4096 f32, %s, %d GPUs\", \"us\": %.2f}\n",
           ranks[0].name, count, ranks[0].us);
    return 0;
}

static int count_gpus(void) {
    avl_device_t *device;
#ifdef AVL_CUDA_SHIM
    avl_shim_configure(&(avl_shim_options_t){.devices = 1});
#endif
    if (avl_cuda_device_open(0, &device) != AVL_OK)
        return 0;
    int count = device->info.gpu_count;
    avl_device_close(device);
    return count < RANKS_MAX ? count : RANKS_MAX;
}

int main(void) {
    static rank_t ranks[RANKS_MAX];
    pthread_t threads[RANKS_MAX];
    avl_group_t *groups[RANKS_MAX];
    int count = count_gpus();
    if (count == 0 || (count == 1 ? avl_group_open_single(groups)
                                  : avl_group_open_loopback(count, groups)) != AVL_OK) {
        printf("%s\n", avl_status_detail());
        return 1;
    }
    for (int i = 0; i < COUNT; i++)
        numbers[i] = (float)(i % 251);
    for (int i = 0; i < count; i++) {
        ranks[i] = (rank_t){.index = i, .ranks = count, .group = groups[i]};
        if (pthread_create(&threads[i], NULL, live, &ranks[i]) != 0)
            return 1;
    }
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < count; i++)
        avl_group_close(groups[i]);
    return report(ranks, count);
}
