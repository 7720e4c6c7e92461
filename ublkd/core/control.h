/* SPDX-License-Identifier: MIT */
/*
 * Commands on /dev/ublk-control, one at a time, each with a deadline.
 *
 * Not here: what a command means (control.py) and in which order they go
 * (device.py).
 */
#ifndef UBLKD_CONTROL_H
#define UBLKD_CONTROL_H

#include <stdint.h>

struct control;

/* Opens the control node and its ring; -errno. */
int control_init(struct control **out);
void control_deinit(struct control *c);

/*
 * Gives one command and waits for its answer, at most `timeout_ms`.
 * `buf` (`len` bytes, up to CONTROL_BUF_BYTES) travels in both directions;
 * the first `path_len` bytes of it are the device path that GET_DEV_INFO2
 * wants. Returns the command's result, -errno, or -ETIMEDOUT; after a
 * timeout that could not be cancelled every further command is -EBUSY.
 */
#define CONTROL_BUF_BYTES 4096
int control_cmd(struct control *c, uint32_t op, uint32_t dev_id, uint64_t data,
		void *buf, uint16_t len, uint16_t path_len,
		unsigned int timeout_ms);

#endif
