/* SPDX-License-Identifier: MIT */
/* Answers from several threads at once, as close together as they come. */
#include <errno.h>
#include <pthread.h>

#include "harness_impl.h"

#define MOST 8

struct answering {
	struct fake *f;
	pthread_barrier_t *start;
	int answer;
};

static void *answer_all(void *arg)
{
	const struct answering *a = arg;

	pthread_barrier_wait(a->start);
	for (uint16_t tag = 0; tag < a->f->cfg.depth; tag++)
		group_answer(&a->f->groups[tag], a->answer);
	return NULL;
}

int fake_answer_all(struct fake *f, unsigned int threads, int answer)
{
	pthread_barrier_t start;
	struct answering a = { f, &start, answer };
	pthread_t ids[MOST];
	int ret;

	if (threads > MOST)
		return -E2BIG;
	pthread_barrier_init(&start, NULL, threads + 1);
	for (unsigned int i = 0; i < threads; i++) {
		ret = pthread_create(&ids[i], NULL, answer_all, &a);
		if (ret)
			return -ret; /* and a test that ends here */
	}
	pthread_barrier_wait(&start);
	ret = fake_run(f, UINT32_MAX);
	for (unsigned int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
	pthread_barrier_destroy(&start);
	return ret;
}
