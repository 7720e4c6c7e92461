/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "queue_impl.h"

#define MAX_TRIES 16 /* of a command that the kernel had no memory for */

/* --- tags -------------------------------------------------------------- */

static void end_with(struct queue *q, int err)
{
	uint64_t one = 1;

	if (q->error)
		return;
	__atomic_store_n(&q->error, err, __ATOMIC_RELEASE);
	if (q->cfg.notify_fd >= 0 &&
	    write(q->cfg.notify_fd, &one, sizeof(one)) < 0)
		return; /* it is full: somebody has been told already */
}

int queue_error(const struct queue *q)
{
	return __atomic_load_n(&q->error, __ATOMIC_ACQUIRE);
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

static void send_result(struct queue *q, uint16_t tag, int result)
{
	q->commits[tag].result = result;
	q->commits[tag].pending = true;
	prep_io_cmd(q, tag, UBLK_U_IO_COMMIT_AND_FETCH_REQ, result);
}

/* env->commit: the request is over, the tag is the driver's again. */
void queue_commit(struct group *g, int result)
{
	struct queue *q = g->env->owner;

	q->nr_serving--;
	send_result(q, g->tag, result);
	group_count(g, result, q->now);
}

/*
 * The driver, or io_uring before it, did not take a command. A result is
 * sent again: nobody else would ever finish its request.
 */
static void on_refused(struct queue *q, uint16_t tag, int res)
{
	struct commit *c = &q->commits[tag];

	if (res != UBLK_IO_RES_ABORT && c->pending && c->tries++ < MAX_TRIES) {
		send_result(q, tag, c->result);
		return;
	}
	q->tags[tag] = TAG_STOPPED;
	q->nr_live--;
	q->leaving |= res == UBLK_IO_RES_ABORT;
	if (res != UBLK_IO_RES_ABORT)
		end_with(q, res < 0 ? res : -EPROTO);
}

/* The driver answers a FETCH or a COMMIT_AND_FETCH. */
static void on_fetched(struct queue *q, uint16_t tag, int res)
{
	if (res != UBLK_IO_RES_OK) {
		on_refused(q, tag, res);
		return;
	}
	q->commits[tag] = (struct commit){ 0 };
	if (q->error) {
		send_result(q, tag, -EIO);
		return;
	}
	q->tags[tag] = TAG_SERVING;
	q->nr_serving++;
	group_begin(&q->groups[tag], &q->iods[tag], q->now);
}

/*
 * Only failures arrive here. Pages that stay lent would keep their request
 * from ever ending, and the slot from its next one.
 */
static void on_unlent(struct queue *q, uint64_t ud, int res)
{
	if ((ud & UD_LEND) || res >= 0)
		return;
	if (q->nr_unlend_tries++ < MAX_TRIES)
		lease_take_back(&q->leases, (uint16_t)ud);
	else
		end_with(q, res);
}

/* --- other threads ----------------------------------------------------- */

static void listen_for_answers(struct queue *q)
{
	struct io_uring_sqe *sqe = ring_sqe(&q->ring);

	sqe->opcode = IORING_OP_READ;
	sqe->fd = groups_wake_fd(&q->env);
	sqe->addr = (__u64)(uintptr_t)&q->wakes;
	sqe->len = sizeof(q->wakes);
	sqe->user_data = UD_WAKE;
}

static void on_wake(struct queue *q, int res)
{
	groups_answered(&q->env);
	if (res < 0 && res != -EAGAIN && res != -EINTR)
		end_with(q, res); /* deaf: whoever hears of it stops us */
	else
		listen_for_answers(q);
}

void queue_poke(struct queue *q)
{
	groups_wake(&q->env);
}

/* --- completions ------------------------------------------------------- */

static void on_cqe(struct queue *q, uint64_t ud, int res, uint32_t flags)
{
	uint16_t tag = (uint16_t)ud;

	if (ud & UD_WAKE)
		on_wake(q, res);
	else if (ud & UD_LEADER)
		on_fetched(q, tag, res);
	else if (ud & UD_UNLEND)
		on_unlent(q, ud, res);
	else if (ud & UD_LEND)
		group_lent(&q->groups[tag], res);
	else
		group_cqe(&q->groups[tag], (uint16_t)(ud >> 16), res, flags);
}

static void reap(struct queue *q)
{
	struct io_uring_cqe *cqe;

	while (!io_uring_peek_cqe(&q->ring.uring, &cqe)) {
		uint64_t ud = cqe->user_data;
		uint32_t flags = cqe->flags;
		int res = cqe->res;

		/* its place is free before anything new is submitted */
		io_uring_cq_advance(&q->ring.uring, 1);
		on_cqe(q, ud, res, flags);
	}
	groups_turn(&q->env);
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
	/* and one to be woken by, and the target's own with their cancels */
	unsigned int ops = q->cfg.depth * queue_cqes_per_tag(&q->cfg) + 1 +
			   2 * OWN_MEMBERS;
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

/* What the target has under way of its own uses its memory. */
static void end_own(struct queue *q)
{
	while (!q->error && groups_wind_up(&q->env) &&
	       !ring_submit_and_wait(&q->ring))
		reap(q);
	groups_break(&q->env);
	while (groups_busy(&q->env) && !ring_submit_and_wait(&q->ring))
		reap(q);
}

static void tear_down(struct queue *q)
{
	end_own(q);
	ring_deinit(&q->ring);
	if (!q->nr_serving)
		groups_end(&q->env);
	munmap((void *)(uintptr_t)q->iods, q->iods_bytes);
	/* the ring ends behind our back: what its members use must stay */
	if (!q->nr_serving)
		lease_table_deinit(&q->leases);
}

static void fetch_all(struct queue *q)
{
	for (uint16_t tag = 0; tag < q->cfg.depth; tag++)
		prep_io_cmd(q, tag, UBLK_U_IO_FETCH_REQ, 0);
	q->nr_live = q->cfg.depth;
	listen_for_answers(q);
	ring_submit_all(&q->ring);
	if (q->ring.error)
		end_with(q, q->ring.error);
	/* a FETCH that the driver refuses has answered by now */
	q->now = stats_now();
	reap(q);
}

/*
 * A device that is quiesced: the driver takes back the commands of idle tags
 * only, and hands out nothing more. What it had handed out before has come,
 * once there is nothing to look at.
 */
static bool is_drained(struct queue *q)
{
	return q->leaving && !q->nr_serving && !ring_submit_and_look(&q->ring);
}

/* Only the driver ends this: until then every request gets its answer. */
static int serve(struct queue *q)
{
	while (q->nr_live && !is_drained(q)) {
		int ret = ring_submit_and_wait(&q->ring);

		if (ret < 0) {
			end_with(q, ret);
			break;
		}
		q->now = stats_now();
		reap(q);
		q->cfg.stats->turns++;
	}
	return q->error;
}

int queue_run(struct queue *q)
{
	int ret = set_up(q);

	if (ret == 0) {
		ret = groups_start(&q->env);
		if (ret < 0)
			tear_down(q);
	}
	if (ret == 0) {
		fetch_all(q);
		if (!q->error) {
			queue_set_state(q, QUEUE_READY, 0);
			ret = serve(q);
		} else {
			ret = q->error; /* never started: nobody will stop it */
		}
		tear_down(q);
	}
	queue_set_state(q, QUEUE_ENDED, ret);
	return ret;
}
