/* SPDX-License-Identifier: MIT */
/* The layouts as C has them, for a test that Python has the same. */
#include "harness.h"

#include <string.h>

#include "loop.h"
#include "queue.h"

size_t size_of(const char *name)
{
	static const struct {
		const char *name;
		size_t size;
	} known[] = {
		{ "struct fake_config", sizeof(struct fake_config) },
		{ "struct group", sizeof(struct group) },
		{ "struct group_env", sizeof(struct group_env) },
		{ "struct issued", sizeof(struct issued) },
		{ "struct lease_table", sizeof(struct lease_table) },
		{ "struct loop", sizeof(struct loop) },
		{ "struct member", sizeof(struct member) },
		{ "struct outcome", sizeof(struct outcome) },
		{ "struct plan_member", sizeof(struct plan_member) },
		{ "struct queue_config", sizeof(struct queue_config) },
		{ "struct queue_stats", sizeof(struct queue_stats) },
		{ "struct recorded", sizeof(struct recorded) },
		{ "struct reaction", sizeof(struct reaction) },
		{ "struct ublksrv_io_desc", sizeof(struct ublksrv_io_desc) },
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (!strcmp(known[i].name, name))
			return known[i].size;
	return 0;
}
