/* What the files of agent/capture share: see capture.h for the whole. One thread. */
#ifndef TIDEMARK_AGENT_CAPTURE_PARTS_H
#define TIDEMARK_AGENT_CAPTURE_PARTS_H

#include "agent/capture.h"

/* capture_map.c: fills used and used_trusted of every volume, extents and flags of the request's
 * files, and ret_wal, from the mounted filesystems as they are now. */
int capture_take_maps(struct capture *capture, struct capture_request *request, struct err *err);
/* Only the files; only the used blocks; only the WAL, where the request wants it. */
int capture_take_files(struct capture *capture, struct capture_request *request, struct err *err);
int capture_take_used(struct capture *capture, struct err *err);
int capture_take_wal(struct capture *capture, struct capture_request *request, struct err *err);
/* Takes out of ret_wal, which is normalised, what is no segment file's own any more, or could not
 * be looked at until then, into ret_lost: extents on volume *ret_index. Nothing is set when no WAL
 * is left out. */
int capture_recheck_wal(struct capture *capture, struct capture_request *request, uint64_t until_ns,
                        size_t *ret_index, struct extent_list *ret_lost, struct err *err);
/* Makes the whole device used. */
int capture_use_all(struct capture_volume *volume, struct err *err);
/* Bytes of files and metadata on all volumes, less the WAL that request leaves out. Live: a guess.
 */
uint64_t capture_estimate_bytes(const struct capture *capture,
                                const struct capture_request *request);

/* capture.c: exec's the guardian; no freeze before. */
int capture_arm(struct capture *capture, struct err *err);
/* capture.c: writes out dirty pages, then freezes all volumes. */
int capture_freeze(struct capture *capture, struct err *err);
/* capture.c: ERR_DEVICE or ERR_REFUSED unless these are the devices and mounts of the start and,
 * with compare_writes, not one sector has been written since they were opened for reading. */
int capture_check_unchanged(const struct capture *capture, bool compare_writes, struct err *err);
const char *capture_volume_name(const struct capture *capture, size_t index);

/* capture_precopy.c */
int capture_precopy_begin(struct capture *capture, struct capture_request *request,
                          struct err *err);
void capture_precopy_end(struct capture *capture);
/* capture_watch.c: makes capture->precopy, which capture_precopy_end() releases, and marks every
 * volume; on each it tries whether a write is seen: by the marks, at its place, and by the kernel's
 * counters. ERR_REFUSED when not. */
int capture_watch_attach(struct capture *capture, uint32_t chunk_size, struct err *err);

/* capture_keep.c: for the exact compare of tests, which is on when the environment's
 * TIDEMARK_TEST_PRECOPY_KEEP names a directory. extents: appends lines "kind offset length" to
 * VOLUME.extents there; stall: a line with the nanoseconds to `stalls`; device: copies the frozen
 * device to VOLUME.img. */
int capture_keep_extents(const struct capture *capture, size_t index, const char *kind,
                         const struct extent_list *list, struct err *err);
bool capture_keeps(void);
int capture_keep_stall(uint64_t stall_ns, struct err *err);
int capture_keep_devices(const struct capture *capture, struct err *err);
/* Whether a test wants this rule of the protocol broken, to see that the compare notices: the
 * environment has TIDEMARK_TEST_PRECOPY_BREAK=rule, and evidence is kept. "barrier": the first pass
 * takes its marks without a freeze; "map": marks of chunks that were free at the start are not
 * believed; "wal": what was left out is not looked at again. "slow-map" breaks none: the map is
 * taken for one that takes too long for a freeze, and a second later. */
bool capture_breaks(const char *rule);

/* capture_command.c: the scripts. begin writes the list of what to drop; make runs snapshot_command
 * of every volume within timeout_ms; open opens what they printed; drop runs drop_command for all
 * that were made and removes the list when all are gone. */
int capture_command_begin(struct capture *capture, struct err *err);
int capture_command_make(struct capture *capture, unsigned timeout_ms, struct err *err);
int capture_command_open(struct capture *capture, struct err *err);
void capture_command_drop(struct capture *capture);

#endif
