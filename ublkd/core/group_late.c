/* SPDX-License-Identifier: MIT */
/* Requests whose answer comes by another road, and from other threads. */
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "group.h"
#include "group_impl.h"
#include "member.h"

void group_hold(struct group *g)
{
	g->nr_pending++;
}

void group_drop(struct group *g)
{
	group_member_over(g);
}

void *group_memory(const struct group *g)
{
	unsigned int op = iod_op(g->iod);

	/* the others name more bytes than there is memory, and have none */
	if (op != UBLK_IO_OP_READ && op != UBLK_IO_OP_WRITE)
		return NULL;
	return lease_memory(g->env->leases, &g->lease, g->tag);
}

int group_copy(const struct group *g, void *to, uint32_t len)
{
	if (iod_op(g->iod) != UBLK_IO_OP_WRITE || len > g->size)
		return -EINVAL;
	return lease_copy(g->env->leases, &g->lease, g->tag, to, len);
}

struct late {
	pthread_mutex_t lock;
	int wake_fd; /* an eventfd */
	struct group *answered;
};

struct late *late_new(void)
{
	struct late *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	l->wake_fd = eventfd(0, EFD_CLOEXEC);
	if (l->wake_fd < 0 || pthread_mutex_init(&l->lock, NULL)) {
		if (l->wake_fd >= 0)
			close(l->wake_fd);
		free(l);
		return NULL;
	}
	return l;
}

void late_free(struct late *l)
{
	if (!l)
		return;
	pthread_mutex_destroy(&l->lock);
	close(l->wake_fd);
	free(l);
}

int groups_wake_fd(const struct group_env *env)
{
	return env->late ? env->late->wake_fd : -1;
}

void groups_wake(const struct group_env *env)
{
	(void)eventfd_write(env->late->wake_fd, 1);
}

void own_wake(struct own *o)
{
	groups_wake(o->group->env);
}

void group_answer(struct group *g, int answer)
{
	struct late *l = g->env->late;

	/* the lock also keeps the queue from ending before it is told */
	pthread_mutex_lock(&l->lock);
	if (!g->nr_late++) { /* else it is in the list: it has many holders */
		g->late_answer = answer;
		g->next_answered = l->answered;
		l->answered = g;
	} else if (answer < g->late_answer) {
		g->late_answer = answer;
	}
	(void)eventfd_write(l->wake_fd, 1);
	pthread_mutex_unlock(&l->lock);
}

/* One request that was answered, by `n` of its holders; or NULL. */
static struct group *take_answered(struct late *l, int *answer, uint16_t *n)
{
	struct group *g;

	pthread_mutex_lock(&l->lock);
	g = l->answered;
	if (g) {
		l->answered = g->next_answered;
		*answer = g->late_answer;
		*n = g->nr_late;
		g->nr_late = 0;
	}
	pthread_mutex_unlock(&l->lock);
	return g;
}

void groups_answered(struct group_env *env)
{
	struct group *g;
	uint16_t n;
	int answer;

	while ((g = take_answered(env->late, &answer, &n))) {
		group_complete(g, answer);
		while (n--)
			group_member_over(g);
	}
	if (env->ops->on_wake && env->own->started && !env->own->ending)
		env->ops->on_wake(env->target);
}
