/* SPDX-License-Identifier: MIT */
/* A target that does what a test has written down. */
#include "harness.h"

#include <errno.h>

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

static const struct ublkd_target_ops ops = {
	.abi = UBLKD_TARGET_ABI,
	.name = "scripted",
	.submit = scripted_submit,
	.on_cqe = scripted_on_cqe,
};

const struct ublkd_target_ops *scripted_ops(void)
{
	return &ops;
}
