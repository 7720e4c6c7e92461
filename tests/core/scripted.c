/* SPDX-License-Identifier: MIT */
/* A target that does what a test has written down. */
#include "harness.h"

#include <errno.h>

static int add_to_lane(struct group *g, const struct plan_member *p)
{
	void *memory = (void *)(uintptr_t)p->offset;
	uint32_t len = (uint32_t)p->len;
	uint32_t zc = p->op == MEMBER_SEND_ZC ? GROUP_SEND_ZC : 0;

	if (p->op == MEMBER_RECV && memory)
		return group_recv_memory(g, p->file, memory, len);
	if (p->op == MEMBER_RECV)
		return group_recv(g, p->file, p->buf, len);
	if (memory)
		return group_send_memory(g, p->file, memory, len, p->flags);
	return group_send(g, p->file, p->buf, len, p->flags | zc);
}

static int add(struct group *g, const struct plan_member *p)
{
	switch (p->op) {
	case MEMBER_READ:
		return group_read(g, p->file, p->offset, p->buf,
				  (uint32_t)p->len);
	case MEMBER_WRITE:
		return group_write(g, p->file, p->offset, p->buf,
				   (uint32_t)p->len, p->flags);
	case MEMBER_ZEROES:
		return group_zeroes(g, p->file, p->offset, p->len, p->flags);
	case MEMBER_FSYNC:
		return group_fsync(g, p->file, p->flags);
	case MEMBER_FALLOCATE:
		return group_fallocate(g, p->file, p->flags, p->offset, p->len);
	case MEMBER_DISCARD:
		return group_discard(g, p->file, p->offset, p->len);
	case MEMBER_SEND:
	case MEMBER_SEND_ZC:
	case MEMBER_RECV:
		return add_to_lane(g, p);
	default:
		return -EINVAL;
	}
}

static int scripted_submit(void *target, struct group *g,
			   const struct ublksrv_io_desc *iod)
{
	const struct script *s = target;
	const struct plan *p = &s->plans[g->tag];

	(void)iod;
	for (uint32_t i = 0; i < p->nr_members; i++)
		p->members[i].added = add(g, &p->members[i]);
	for (uint32_t i = 0; i < p->holds; i++)
		group_hold(g);
	if (p->answers)
		group_complete(g, p->answer);
	return p->returns;
}

static int scripted_on_cqe(void *target, struct group *g, unsigned int member,
			   int res)
{
	const struct script *s = target;

	for (uint32_t i = 0; i < s->nr_reactions; i++) {
		struct reaction *r = &s->reactions[i];

		if (r->used || r->tag != g->tag || r->member != member)
			continue;
		r->used = true;
		if (r->adds)
			r->add.added = add(g, &r->add);
		return r->replaces ? r->result : res;
	}
	return res;
}

static void submit_all(void *target, struct group *const *groups,
		       unsigned int n)
{
	struct script *s = target;

	s->batches++;
	for (unsigned int i = 0; i < n; i++) {
		int ret = scripted_submit(target, groups[i], groups[i]->iod);

		if (ret < 0)
			group_complete(groups[i], ret);
	}
}

static const struct ublkd_target_ops batched = {
	.abi = UBLKD_TARGET_ABI,
	.flags = UBLKD_ANSWERS_LATE,
	.name = "batched",
	.submit_all = submit_all,
	.on_cqe = scripted_on_cqe,
};

const struct ublkd_target_ops *batched_ops(void)
{
	return &batched;
}

static const struct ublkd_target_ops ops = {
	.abi = UBLKD_TARGET_ABI,
	.flags = UBLKD_SENDS_ZC,
	.name = "scripted",
	.submit = scripted_submit,
	.on_cqe = scripted_on_cqe,
};

const struct ublkd_target_ops *scripted_ops(void)
{
	return &ops;
}
