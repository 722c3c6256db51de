/* The mount options of an instance's /tmp. */
#ifndef FIRSTLIGHT_TMPFS_H
#define FIRSTLIGHT_TMPFS_H

#define TMPFS_OPTIONS "size=%llu,nr_inodes=65536,mode=1777" /* the size is in bytes */
enum { TMPFS_OPTIONS_MAX = 80 };

#endif
