/* A read-only file system: EROFS as mkfs.erofs writes it uncompressed (Linux, fs/erofs/erofs_fs.h),
 * a file found by its path and read whole. */
#include "guest.h"

enum { SUPER = 1024, UNIT_BITS = 12, UNIT = 1 << UNIT_BITS, SLOT = 32, ENTRY = 12 };
enum { FORMAT = 0, XATTRS = 2, SIZE = 8, DATA = 16, COMPACT = 32, EXTENDED = 64 };
enum { PLAIN = 0, INLINE = 2, MODE = 4, DIRECTORY = 0x4000, FILE = 0x8000, KIND = 0xf000 };
#define MAGIC 0xe0f5e1e2U

struct inode {
	uint64_t size, data,
		tail; /* where its blocks begin, and where its last part is if INLINE */
	uint32_t mode, layout;
};

static uint64_t meta; /* where inode 0 would be */

static uint64_t get(const uint8_t *at, unsigned bytes)
{
	uint64_t value = 0;
	while (bytes--)
		value = value << 8 | at[bytes];
	return value;
}

/* What is at AT of the disk, to the end of its block. */
static const uint8_t *at_disk(uint64_t at)
{
	static const uint8_t *block;
	static uint64_t held = 1; /* no block begins there */
	if (held != (at & ~(UNIT - 1ULL))) {
		held = at & ~(UNIT - 1ULL);
		block = block_read(held);
	}
	return block + at % UNIT;
}

static struct inode inode(uint64_t number)
{
	uint64_t place = meta + number * SLOT;
	const uint8_t *raw = at_disk(place);
	uint64_t format = get(raw + FORMAT, 2), xattrs = get(raw + XATTRS, 2);
	struct inode found = {.mode = (uint32_t)get(raw + MODE, 2),
			      .layout = format >> 1 & 7,
			      .size = get(raw + SIZE, format & 1 ? 8 : 4),
			      .data = get(raw + DATA, 4) << UNIT_BITS};
	found.tail =
		place + (format & 1 ? EXTENDED : COMPACT) + (xattrs ? 12 + 4 * (xattrs - 1) : 0);
	if (found.layout != PLAIN && found.layout != INLINE)
		fail("mount", "a file of the image is compressed or in chunks");
	return found;
}

/* The bytes at OFFSET of a file, to the end of the block or the file. */
static const uint8_t *bytes(const struct inode *file, uint64_t offset, uint64_t *count)
{
	uint64_t begin = offset & ~(UNIT - 1ULL), left = file->size - offset;
	bool in_tail = file->layout == INLINE && begin + UNIT > file->size;
	*count = left < UNIT - offset % UNIT ? left : UNIT - offset % UNIT;
	return at_disk(in_tail ? file->tail + offset % UNIT : file->data + offset);
}

static bool same(const uint8_t *name, uint64_t length, const char *part, uint64_t part_length)
{
	while (length && !name[length - 1]) /* a block's last name is padded */
		length--;
	if (length != part_length)
		return false;
	while (length--)
		if (*name++ != (uint8_t)*part++)
			return false;
	return true;
}

/* The number of the inode that DIRECTORY names so; 0 if none. */
static uint64_t look_up(const struct inode *directory, const char *part, uint64_t length)
{
	for (uint64_t offset = 0; offset < directory->size; offset += UNIT) {
		uint64_t count;
		const uint8_t *block = bytes(directory, offset, &count);
		uint64_t entries = get(block + 8, 2) / ENTRY;
		for (uint64_t i = 0; i < entries && (i + 1) * ENTRY <= count; i++) {
			const uint8_t *entry = block + i * ENTRY;
			uint64_t begin = get(entry + 8, 2);
			uint64_t end = i + 1 < entries ? get(entry + ENTRY + 8, 2) : count;
			if (begin < end && end <= count &&
			    same(block + begin, end - begin, part, length))
				return get(entry, 8);
		}
	}
	return 0;
}

uint32_t erofs_sum(const char *path, uint64_t *size)
{
	const uint8_t *super = at_disk(SUPER);
	if (get(super, 4) != MAGIC || super[12] != UNIT_BITS)
		fail("mount", "the disk is no EROFS image with blocks of 4 KiB");
	uint64_t number = get(super + 14, 2);
	meta = get(super + 40, 4) << UNIT_BITS;
	struct inode file = inode(number);
	while (*path && *path != ' ') {
		uint64_t length = 0;
		while (path[length] && path[length] != ' ' && path[length] != '/')
			length++;
		if (length && (file.mode & KIND) == DIRECTORY)
			number = look_up(&file, path, length);
		if (!number || (length && (file.mode & KIND) != DIRECTORY))
			fail("mount", "the file is not in the image");
		if (length)
			file = inode(number);
		path += length + (path[length] == '/');
	}
	if ((file.mode & KIND) != FILE)
		fail("mount", "the path is not a file");
	uint32_t sum = 0x811c9dc5; /* FNV-1a */
	for (uint64_t offset = 0, count; offset < file.size; offset += count) {
		const uint8_t *part = bytes(&file, offset, &count);
		for (uint64_t i = 0; i < count; i++)
			sum = (sum ^ part[i]) * 0x01000193;
	}
	*size = file.size;
	return sum;
}
