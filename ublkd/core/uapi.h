/* SPDX-License-Identifier: MIT */
/*
 * What the kernel and this program say to each other, and the only place
 * where its numbers are written down.
 *
 * <linux/ublk_cmd.h> is not included on purpose: distributions ship headers
 * years older than the kernels people boot, so every number and layout that
 * is used here stands here, with the release that brought it, and the sizes
 * are asserted. Facts: include/uapi/linux/ublk_cmd.h and io_uring.h.
 */
#ifndef UBLKD_UAPI_H
#define UBLKD_UAPI_H

#include <assert.h>
#include <liburing.h>
#include <linux/ioctl.h>
#include <linux/types.h>

#define UBLK_CONTROL_PATH "/dev/ublk-control"

/* Commands on /dev/ublk-control, ioctl-encoded (6.5). */
#define UBLK_U_CMD_GET_QUEUE_AFFINITY _IOR('u', 0x01, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_GET_DEV_INFO _IOR('u', 0x02, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_ADD_DEV _IOWR('u', 0x04, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_DEL_DEV _IOWR('u', 0x05, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_START_DEV _IOWR('u', 0x06, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_STOP_DEV _IOWR('u', 0x07, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_SET_PARAMS _IOWR('u', 0x08, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_GET_PARAMS _IOR('u', 0x09, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_START_USER_RECOVERY _IOWR('u', 0x10, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_END_USER_RECOVERY _IOWR('u', 0x11, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_GET_DEV_INFO2 _IOR('u', 0x12, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_GET_FEATURES _IOR('u', 0x13, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_DEL_DEV_ASYNC _IOR('u', 0x14, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_UPDATE_SIZE _IOWR('u', 0x15, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_QUIESCE_DEV _IOWR('u', 0x16, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_TRY_STOP_DEV _IOWR('u', 0x17, struct ublksrv_ctrl_cmd)

/* Commands on /dev/ublkcN. */
#define UBLK_U_IO_FETCH_REQ _IOWR('u', 0x20, struct ublksrv_io_cmd)
#define UBLK_U_IO_COMMIT_AND_FETCH_REQ _IOWR('u', 0x21, struct ublksrv_io_cmd)
#define UBLK_U_IO_REGISTER_IO_BUF _IOWR('u', 0x23, struct ublksrv_io_cmd)
#define UBLK_U_IO_UNREGISTER_IO_BUF _IOWR('u', 0x24, struct ublksrv_io_cmd)

/*
 * The SQE-group series (posted up to V10, not merged): a leader that lends
 * its request's pages to the members behind it. PROVIDE_IO_BUF has the number
 * that mainline gave to REGISTER_IO_BUF, so no group is ever submitted before
 * lease_probe_group() has said yes.
 */
#define UBLKD_U_IO_PROVIDE_IO_BUF UBLK_U_IO_REGISTER_IO_BUF
#define UBLKD_IOSQE_SQE_GROUP (1U << 7)
#define UBLKD_IOSQE_GROUP_BUF IOSQE_IO_DRAIN /* its meaning on a member */

#define UBLK_IO_RES_OK 0
#define UBLK_IO_RES_ABORT (-ENODEV)

/* Device features; a bit's release is the first that offers it. */
#define UBLK_F_SUPPORT_ZERO_COPY (1ULL << 0) /* 6.15 */
#define UBLK_F_URING_CMD_COMP_IN_TASK (1ULL << 1)
#define UBLK_F_NEED_GET_DATA (1ULL << 2)
#define UBLK_F_USER_RECOVERY (1ULL << 3)
#define UBLK_F_USER_RECOVERY_REISSUE (1ULL << 4)
#define UBLK_F_UNPRIVILEGED_DEV (1ULL << 5)
#define UBLK_F_CMD_IOCTL_ENCODE (1ULL << 6) /* 6.4 */
#define UBLK_F_USER_COPY (1ULL << 7) /* 6.5 */
#define UBLK_F_ZONED (1ULL << 8) /* 6.6 */
#define UBLK_F_USER_RECOVERY_FAIL_IO (1ULL << 9) /* 6.13 */
#define UBLK_F_UPDATE_SIZE (1ULL << 10) /* 6.16 */
#define UBLK_F_AUTO_BUF_REG (1ULL << 11) /* 6.16 */
#define UBLK_F_QUIESCE (1ULL << 12) /* 6.16 */
#define UBLK_F_PER_IO_DAEMON (1ULL << 13) /* 6.16 */
#define UBLK_F_BUF_REG_OFF_DAEMON (1ULL << 14) /* 6.17 */
#define UBLK_F_BATCH_IO (1ULL << 15) /* 7.0 */
#define UBLK_F_INTEGRITY (1ULL << 16) /* 7.0 */
#define UBLK_F_SAFE_STOP_DEV (1ULL << 17) /* 7.0 */
#define UBLK_F_NO_AUTO_PART_SCAN (1ULL << 18) /* 7.0 */
#define UBLK_F_SHMEM_ZC (1ULL << 19) /* 7.1 */

/* ublksrv_ctrl_dev_info.state */
#define UBLK_S_DEV_DEAD 0
#define UBLK_S_DEV_LIVE 1
#define UBLK_S_DEV_QUIESCED 2
#define UBLK_S_DEV_FAIL_IO 3

/* ublksrv_io_desc.op_flags: bits 0-7 the operation, the rest flags */
#define UBLK_IO_OP_READ 0
#define UBLK_IO_OP_WRITE 1
#define UBLK_IO_OP_FLUSH 2
#define UBLK_IO_OP_DISCARD 3
#define UBLK_IO_OP_WRITE_ZEROES 5
#define UBLK_IO_F_FUA (1U << 13)
#define UBLK_IO_F_NOUNMAP (1U << 15)
#define UBLK_IO_F_NEED_REG_BUF (1U << 17) /* 6.16 */

/* sqe->addr of FETCH and COMMIT with AUTO_BUF_REG: index | flags << 16 */
#define UBLK_AUTO_BUF_REG_FALLBACK (1U << 0)
#define UBLK_AUTO_BUF_REG_FLAGS_SHIFT 16
/* entries an io_uring buffer table may have (io_uring/rsrc.c) */
#define UBLKD_MAX_BUF_TABLE (1U << 14)

#define UBLK_MAX_QUEUE_DEPTH 4096
#define UBLK_MAX_NR_QUEUES 4096
#define UBLKSRV_CMD_BUF_OFFSET 0
#define UBLKSRV_IO_BUF_OFFSET 0x80000000ULL
#define UBLK_IO_BUF_BITS 25 /* one request is at most 32 MiB */
#define UBLK_TAG_OFF UBLK_IO_BUF_BITS
#define UBLK_QID_OFF (UBLK_TAG_OFF + 16)

/* ublk_params.types */
#define UBLK_PARAM_TYPE_BASIC (1 << 0)
#define UBLK_PARAM_TYPE_DISCARD (1 << 1)
#define UBLK_PARAM_TYPE_DEVT (1 << 2)
#define UBLK_PARAM_TYPE_DMA_ALIGN (1 << 4) /* 6.15 */
#define UBLK_PARAM_TYPE_SEGMENT (1 << 5) /* 6.15 */

/* ublk_param_basic.attrs */
#define UBLK_ATTR_READ_ONLY (1 << 0)
#define UBLK_ATTR_ROTATIONAL (1 << 1)
#define UBLK_ATTR_VOLATILE_CACHE (1 << 2)
#define UBLK_ATTR_FUA (1 << 3)

/* <linux/blkdev.h>: a discard as a uring_cmd on a block device (6.12) */
#define UBLKD_BLOCK_URING_CMD_DISCARD _IO(0x12, 0)

struct ublksrv_ctrl_cmd {
	__u32 dev_id;
	__u16 queue_id;
	__u16 len;
	__u64 addr;
	__u64 data[1];
	__u16 dev_path_len;
	__u16 pad;
	__u32 reserved;
};
static_assert(sizeof(struct ublksrv_ctrl_cmd) == 32, "ublksrv_ctrl_cmd");

struct ublksrv_ctrl_dev_info {
	__u16 nr_hw_queues;
	__u16 queue_depth;
	__u16 state;
	__u16 pad0;
	__u32 max_io_buf_bytes;
	__u32 dev_id;
	__s32 ublksrv_pid;
	__u32 pad1;
	__u64 flags;
	__u64 ublksrv_flags;
	__u32 owner_uid;
	__u32 owner_gid;
	__u64 reserved1;
	__u64 reserved2;
};
static_assert(sizeof(struct ublksrv_ctrl_dev_info) == 64, "dev_info");

struct ublksrv_io_desc {
	__u32 op_flags;
	__u32 nr_sectors;
	__u64 start_sector;
	__u64 addr;
};
static_assert(sizeof(struct ublksrv_io_desc) == 24, "ublksrv_io_desc");

struct ublksrv_io_cmd {
	__u16 q_id;
	__u16 tag;
	__s32 result;
	__u64 addr;
};
static_assert(sizeof(struct ublksrv_io_cmd) == 16, "ublksrv_io_cmd");

struct ublk_param_basic {
	__u32 attrs;
	__u8 logical_bs_shift;
	__u8 physical_bs_shift;
	__u8 io_opt_shift;
	__u8 io_min_shift;
	__u32 max_sectors;
	__u32 chunk_sectors;
	__u64 dev_sectors;
	__u64 virt_boundary_mask;
};

struct ublk_param_discard {
	__u32 discard_alignment;
	__u32 discard_granularity;
	__u32 max_discard_sectors;
	__u32 max_write_zeroes_sectors;
	__u16 max_discard_segments;
	__u16 reserved0;
};

struct ublk_param_devt {
	__u32 char_major;
	__u32 char_minor;
	__u32 disk_major;
	__u32 disk_minor;
};

struct ublk_param_zoned {
	__u32 max_open_zones;
	__u32 max_active_zones;
	__u32 max_zone_append_sectors;
	__u8 reserved[20];
};

struct ublk_param_dma_align {
	__u32 alignment; /* a mask: the alignment in bytes, less one */
	__u8 pad[4];
};

struct ublk_param_segment {
	__u64 seg_boundary_mask;
	__u32 max_segment_size;
	__u16 max_segments;
	__u8 pad[2];
};

struct ublk_params {
	__u32 len; /* older kernels take what they know of it */
	__u32 types;
	struct ublk_param_basic basic;
	struct ublk_param_discard discard;
	struct ublk_param_devt devt;
	struct ublk_param_zoned zoned;
	struct ublk_param_dma_align dma;
	struct ublk_param_segment seg;
};
static_assert(sizeof(struct ublk_params) == 136, "ublk_params");

#endif
