/* SPDX-License-Identifier: MIT */
/* What all groups of a queue share: made and given back. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "group.h"
#include "group_impl.h"

static const void *new_zeroes(void)
{
	void *p = mmap(NULL, ZEROES_BYTES, PROT_READ,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

int group_env_init(struct group_env *env, uint16_t depth, const int *files,
		   uint32_t nr_files)
{
	bool late = env->ops->flags & UBLKD_ANSWERS_LATE;

	env->zeroes = new_zeroes();
	env->batch = calloc(depth, sizeof(*env->batch));
	env->lanes = lanes_new(files, nr_files);
	env->nr_lanes = nr_files;
	env->own = own_new(env, depth);
	env->late = late ? late_new() : NULL;
	return env->zeroes && env->batch && env->lanes && env->own &&
			       (env->late || !late)
		       ? 0
		       : -ENOMEM;
}

void group_env_deinit(struct group_env *env)
{
	late_free(env->late);
	free(env->own);
	lanes_free(env->lanes, env->nr_lanes);
	free(env->batch);
	if (env->zeroes)
		munmap((void *)(uintptr_t)env->zeroes, ZEROES_BYTES);
}
