/* SPDX-License-Identifier: MIT */
#include "queue.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "group.h"
#include "ring.h"

enum tag_state {
	TAG_STOPPED, /* the driver has nothing of ours and sends nothing */
	TAG_FETCHING, /* the driver owns it: FETCH or COMMIT_AND_FETCH */
	TAG_SERVING, /* a group leads its request */
};

enum queue_state { QUEUE_NEW, QUEUE_READY, QUEUE_ENDED };

struct queue {
	struct queue_config cfg;
	int *files; /* slot 0 is /dev/ublkcN */
	struct ring ring;
	struct lease_table leases;
	struct group_env env;
	struct group *groups; /* one per tag */
	struct member *members; /* max_members per tag */
	uint8_t *tags; /* enum tag_state */
	unsigned int nr_live; /* tags that are not stopped */
	unsigned int nr_serving;
	const struct ublksrv_io_desc *iods;
	size_t iods_bytes;
	int error; /* the first one that ends the queue */
	uint64_t now; /* ns, of this turn */

	pthread_mutex_t lock;
	pthread_cond_t changed;
	enum queue_state state; /* under lock, as is: */
	int ended_with;
};

static void set_state(struct queue *q, enum queue_state state, int ret)
{
	pthread_mutex_lock(&q->lock);
	q->state = state;
	q->ended_with = ret;
	pthread_cond_broadcast(&q->changed);
	pthread_mutex_unlock(&q->lock);
}

int queue_wait_ready(struct queue *q, unsigned int timeout_ms)
{
	struct timespec until;
	int ret = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += timeout_ms / 1000;
	until.tv_nsec += timeout_ms % 1000 * 1000000L;
	if (until.tv_nsec >= 1000000000L) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000L;
	}
	pthread_mutex_lock(&q->lock);
	while (q->state == QUEUE_NEW && !ret)
		ret = -pthread_cond_timedwait(&q->changed, &q->lock, &until);
	if (q->state == QUEUE_ENDED)
		ret = q->ended_with < 0 ? q->ended_with : -ECANCELED;
	else if (q->state == QUEUE_READY)
		ret = 0;
	pthread_mutex_unlock(&q->lock);
	return ret;
}

/* --- tags -------------------------------------------------------------- */

static void end_with(struct queue *q, int err)
{
	if (!q->error)
		q->error = err;
}

static void prep_io_cmd(struct queue *q, uint16_t tag, uint32_t op, int result)
{
	struct io_uring_sqe *sqe = ring_sqe(&q->ring);
	struct ublksrv_io_cmd cmd = {
		.q_id = q->cfg.qid,
		.tag = tag,
		.result = result,
	};

	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = 0;
	sqe->flags = IOSQE_FIXED_FILE;
	sqe->off = op; /* cmd_op is its low half */
	sqe->user_data = UD_LEADER | tag;
	lease_prep_fetch(&q->leases, tag, sqe, &cmd);
	memcpy(&sqe->addr3, &cmd, sizeof(cmd)); /* the command area */
	q->tags[tag] = TAG_FETCHING;
}

/* env->commit: the request is over, the tag is the driver's again. */
static void commit(struct group *g, int result)
{
	struct queue *q = g->env->owner;

	q->nr_serving--;
	prep_io_cmd(q, g->tag, UBLK_U_IO_COMMIT_AND_FETCH_REQ, result);
	stats_end(q->cfg.stats, iod_op(g->iod), g->size, result,
		  q->now - g->began);
}

/* The driver answers a FETCH or a COMMIT_AND_FETCH. */
static void on_fetched(struct queue *q, uint16_t tag, int res)
{
	if (res == UBLK_IO_RES_OK && !q->error) {
		q->tags[tag] = TAG_SERVING;
		q->nr_serving++;
		group_begin(&q->groups[tag], &q->iods[tag], q->now);
		return;
	}
	q->tags[tag] = TAG_STOPPED;
	q->nr_live--;
	/* any other errno means a request that nobody would ever finish */
	if (res != UBLK_IO_RES_ABORT && res != UBLK_IO_RES_OK)
		end_with(q, res < 0 ? res : -EPROTO);
}

/*
 * Only failures arrive here. Pages that stay lent would keep their request
 * from ever ending, and the slot from its next one.
 */
static void on_unlent(struct queue *q, uint64_t ud, int res)
{
	if (!(ud & UD_LEND) && res < 0)
		end_with(q, res);
}

static void reap(struct queue *q)
{
	struct io_uring_cqe *cqe;
	unsigned int head, n = 0;

	io_uring_for_each_cqe(&q->ring.uring, head, cqe)
	{
		uint64_t ud = cqe->user_data;
		uint16_t tag = (uint16_t)ud;

		n++;
		if (ud & UD_LEADER)
			on_fetched(q, tag, cqe->res);
		else if (ud & UD_UNLEND)
			on_unlent(q, ud, cqe->res);
		else if (ud & UD_LEND)
			group_lent(&q->groups[tag], cqe->res);
		else
			group_cqe(&q->groups[tag], (uint16_t)(ud >> 16),
				  cqe->res);
	}
	io_uring_cq_advance(&q->ring.uring, n);
}

/* --- the thread -------------------------------------------------------- */

static size_t page_up(size_t bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	return (bytes + page - 1) / page * page;
}

static int map_iods(struct queue *q)
{
	/* the stride between queues is the driver's maximum, not our depth */
	off_t at = UBLKSRV_CMD_BUF_OFFSET +
		   (off_t)page_up(UBLK_MAX_QUEUE_DEPTH *
				  sizeof(struct ublksrv_io_desc)) *
			   q->cfg.qid;
	size_t bytes = page_up(q->cfg.depth * sizeof(struct ublksrv_io_desc));
	void *p = mmap(NULL, bytes, PROT_READ, MAP_SHARED | MAP_POPULATE,
		       q->cfg.dev_fd, at);

	if (p == MAP_FAILED)
		return -errno;
	q->iods = p;
	q->iods_bytes = bytes;
	return 0;
}

static int set_up(struct queue *q)
{
	/* per tag: its members, each perhaps with a leader, and its commit */
	unsigned int ops = q->cfg.depth * (2U * q->cfg.max_members + 2U);
	int ret;

	ret = ring_init(&q->ring, ops, ops, q->files, q->cfg.nr_files + 1);
	if (ret < 0)
		return ret;
	ret = lease_table_init(&q->leases, q->cfg.depth);
	if (ret < 0)
		goto exit_ring;
	ret = map_iods(q);
	if (ret < 0)
		goto exit_leases;
	return 0;

exit_leases:
	lease_table_deinit(&q->leases);
exit_ring:
	ring_deinit(&q->ring);
	return ret;
}

static void tear_down(struct queue *q)
{
	/* the ring first: it may still hold requests that use the rest */
	ring_deinit(&q->ring);
	munmap((void *)(uintptr_t)q->iods, q->iods_bytes);
	lease_table_deinit(&q->leases);
}

static void fetch_all(struct queue *q)
{
	for (uint16_t tag = 0; tag < q->cfg.depth; tag++)
		prep_io_cmd(q, tag, UBLK_U_IO_FETCH_REQ, 0);
	q->nr_live = q->cfg.depth;
	io_uring_submit(&q->ring.uring);
	/* a FETCH that the driver refuses has answered by now */
	q->now = stats_now();
	reap(q);
}

/*
 * With an error no request is begun any more, but those in service are
 * finished: their members still use our memory.
 */
static int serve(struct queue *q)
{
	while (q->error ? q->nr_serving : q->nr_live) {
		int ret = ring_submit_and_wait(&q->ring);

		if (ret < 0)
			return ret;
		q->now = stats_now();
		reap(q);
	}
	return q->error;
}

int queue_run(struct queue *q)
{
	int ret = set_up(q);

	if (ret == 0) {
		fetch_all(q);
		if (!q->error)
			set_state(q, QUEUE_READY, 0);
		ret = serve(q);
		tear_down(q);
	}
	set_state(q, QUEUE_ENDED, ret);
	return ret;
}

/* --- making and freeing ------------------------------------------------ */

static int init_lock(struct queue *q)
{
	pthread_condattr_t attr;
	int ret = pthread_condattr_init(&attr);

	if (ret)
		return -ret;
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	ret = pthread_cond_init(&q->changed, &attr);
	pthread_condattr_destroy(&attr);
	if (ret)
		return -ret;
	return -pthread_mutex_init(&q->lock, NULL);
}

static void *new_zeroes(void)
{
	void *p = mmap(NULL, ZEROES_BYTES, PROT_READ,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static int alloc(struct queue *q)
{
	size_t depth = q->cfg.depth;

	q->files = calloc(q->cfg.nr_files + 1, sizeof(*q->files));
	q->groups = calloc(depth, sizeof(*q->groups));
	q->members = calloc(depth * q->cfg.max_members, sizeof(*q->members));
	q->tags = calloc(depth, sizeof(*q->tags));
	q->env.zeroes = new_zeroes();
	if (!q->files || !q->groups || !q->members || !q->tags ||
	    !q->env.zeroes)
		return -ENOMEM;
	return 0;
}

static void wire(struct queue *q)
{
	const struct queue_config *cfg = &q->cfg;

	q->files[0] = cfg->dev_fd;
	for (uint32_t i = 0; i < cfg->nr_files; i++)
		q->files[i + 1] = cfg->files[i];
	q->leases.kind = cfg->lease;
	q->leases.ring = &q->ring;
	q->leases.dev_fd = cfg->dev_fd;
	q->leases.qid = cfg->qid;
	q->leases.slots = cfg->lease_slots;
	q->leases.max_io = cfg->max_io;
	q->env.ring = &q->ring;
	q->env.leases = &q->leases;
	q->env.stats = cfg->stats;
	q->env.ops = cfg->ops;
	q->env.target = cfg->target;
	q->env.block = cfg->block;
	q->env.align = cfg->align;
	q->env.max_members = cfg->max_members;
	q->env.commit = commit;
	q->env.owner = q;
	for (uint16_t tag = 0; tag < cfg->depth; tag++) {
		q->groups[tag].env = &q->env;
		q->groups[tag].tag = tag;
		q->groups[tag].members =
			q->members + (size_t)tag * cfg->max_members;
	}
	cfg->stats->magic = STATS_MAGIC;
}

int queue_new(const struct queue_config *cfg, struct queue **out)
{
	struct queue *q;
	int ret;

	if (cfg->ops->abi != UBLKD_TARGET_ABI)
		return -ELIBBAD;
	if (!cfg->depth || cfg->depth > UBLK_MAX_QUEUE_DEPTH ||
	    !cfg->max_members || !cfg->max_io || !cfg->block || !cfg->align)
		return -EINVAL;
	q = calloc(1, sizeof(*q));
	if (!q)
		return -ENOMEM;
	q->cfg = *cfg;
	ret = init_lock(q);
	if (ret == 0)
		ret = alloc(q);
	if (ret < 0) {
		queue_free(q);
		return ret;
	}
	wire(q);
	*out = q;
	return 0;
}

void queue_free(struct queue *q)
{
	if (!q)
		return;
	if (q->env.zeroes)
		munmap((void *)(uintptr_t)q->env.zeroes, ZEROES_BYTES);
	free(q->tags);
	free(q->members);
	free(q->groups);
	free(q->files);
	pthread_cond_destroy(&q->changed);
	pthread_mutex_destroy(&q->lock);
	free(q);
}
