/* SPDX-License-Identifier: MIT */
#ifndef UBLKD_TARGETS_NULL_H
#define UBLKD_TARGETS_NULL_H

struct ublkd_target_ops;

const struct ublkd_target_ops *null_ops(void);

#endif
