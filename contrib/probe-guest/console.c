/* Text: a 16550 serial port at its usual place, and a VGA text screen as a simple console drives
 * it, cell by cell with the cursor after each, so that its cost is that of a real one. */
#include "guest.h"

enum { SERIAL = 0x3f8, FIFO_DEPTH = 16, CRTC = 0x3d4, COLUMNS = 80, ROWS = 25 };
enum { CURSOR_HIGH = 0x0e, CURSOR_LOW = 0x0f, GREY_ON_BLACK = 0x0700 };

static bool serial_there, on_vga;
static unsigned room, cursor;
static volatile uint16_t *const screen = (volatile uint16_t *)0xb8000;

static bool serial_open(void)
{
	out8(SERIAL + 7, 0x5a);
	if (in8(SERIAL + 7) != 0x5a)
		return false;
	out8(SERIAL + 1, 0); /* no interrupts */
	out8(SERIAL + 3, 0x80); /* the divisor: 115200 */
	out8(SERIAL + 0, 1);
	out8(SERIAL + 1, 0);
	out8(SERIAL + 3, 3); /* 8 bits, no parity, 1 stop bit */
	out8(SERIAL + 2, 0xc7); /* the queue, emptied */
	return true;
}

static void serial_put(char c)
{
	if (!serial_there)
		return;
	if (!room) {
		uint64_t start = now();
		while (!(in8(SERIAL + 5) & 0x20))
			if (now() - start > PATIENCE)
				return;
		room = FIFO_DEPTH;
	}
	room--;
	out8(SERIAL, (uint8_t)c);
}

static uint8_t crtc_read(uint8_t index)
{
	out8(CRTC, index);
	return in8(CRTC + 1);
}

static void crtc_write(uint8_t index, uint8_t value)
{
	out8(CRTC, index);
	out8(CRTC + 1, value);
}

/* Memory at 0xb8000 proves nothing: without a VGA it may be plain RAM. Its registers do. */
static bool vga_open(void)
{
	uint8_t low = crtc_read(CURSOR_LOW);
	uint8_t other = low ^ 0xff;
	crtc_write(CURSOR_LOW, other);
	if (crtc_read(CURSOR_LOW) != other)
		return false;
	crtc_write(CURSOR_LOW, low);
	cursor = (unsigned)crtc_read(CURSOR_HIGH) << 8 | low;
	if (cursor >= COLUMNS * ROWS)
		cursor = 0;
	return true;
}

static void vga_put(char c)
{
	if (c == '\n')
		cursor += COLUMNS - cursor % COLUMNS;
	else
		screen[cursor++] = (uint16_t)(GREY_ON_BLACK | (uint8_t)c);
	if (cursor >= COLUMNS * ROWS) {
		for (unsigned i = 0; i < COLUMNS * (ROWS - 1); i++)
			screen[i] = screen[i + COLUMNS];
		for (unsigned i = COLUMNS * (ROWS - 1); i < COLUMNS * ROWS; i++)
			screen[i] = GREY_ON_BLACK | ' ';
		cursor -= COLUMNS;
	}
	crtc_write(CURSOR_HIGH, (uint8_t)(cursor >> 8));
	crtc_write(CURSOR_LOW, (uint8_t)cursor);
}

bool console_open(bool vga)
{
	serial_there = serial_open();
	on_vga = vga && vga_open();
	return vga ? on_vga : serial_there;
}

static void put_number(void (*put)(char), uint64_t value, unsigned base)
{
	char digits[20];
	unsigned count = 0;
	do
		digits[count++] = "0123456789abcdef"[value % base];
	while (value /= base);
	while (count)
		put(digits[--count]);
}

static void print(void (*put)(char), const char *format, va_list values)
{
	for (; *format; format++) {
		if (*format != '%')
			put(*format);
		else if (*++format == 's')
			for (const char *text = va_arg(values, const char *); *text; text++)
				put(*text);
		else
			put_number(put, va_arg(values, uint64_t), *format == 'x' ? 16 : 10);
	}
}

void say(const char *format, ...)
{
	va_list values;
	va_start(values, format);
	print(on_vga ? vga_put : serial_put, format, values);
	va_end(values);
}

void report(const char *format, ...)
{
	va_list values;
	va_start(values, format);
	print(serial_put, format, values);
	va_end(values);
}
