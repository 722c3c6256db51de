/* Every function of every bus, by the ports that all PCs have. */
#include "guest.h"

enum { ADDRESS = 0xcf8, DATA = 0xcfc, VIRTIO_VENDOR = 0x1af4 };
enum { DEVICES = 32, FUNCTIONS = 8, HEADER = 0x0c, BUSES = 0x18 };
enum { MULTIFUNCTION = 0x800000, BRIDGE = 0x010000, TYPE = 0x7f0000 };
#define ENABLE 0x80000000U

struct pci pci;

uint32_t pci_read(uint32_t function, uint8_t offset)
{
	out32(ADDRESS, function | (offset & 0xfcU));
	return in32(DATA);
}

void pci_write(uint32_t function, uint8_t offset, uint32_t value)
{
	out32(ADDRESS, function | (offset & 0xfcU));
	out32(DATA, value);
}

/* Count FUNCTION, remember it if it is a virtio device; false if there is none. */
static bool look_at(uint32_t function, uint32_t *last_bus, uint32_t *header)
{
	uint32_t identity = pci_read(function, 0);
	if ((identity & 0xffff) == 0xffff)
		return false;
	pci.functions++;
	*header = pci_read(function, HEADER);
	if ((*header & TYPE) == BRIDGE) {
		uint32_t bus = pci_read(function, BUSES) >> 8 & 0xff;
		if (bus > *last_bus)
			*last_bus = bus;
	}
	if ((identity & 0xffff) == VIRTIO_VENDOR && pci.virtio_functions < PCI_REMEMBERED)
		pci.virtio[pci.virtio_functions++] = function;
	return true;
}

void pci_enumerate(void)
{
	if (is_word(option("pci=", NULL), "off"))
		return;
	out32(ADDRESS, ENABLE);
	pci.present = in32(ADDRESS) == ENABLE;
	uint32_t last_bus = 0;
	for (uint32_t bus = 0; pci.present && bus <= last_bus; bus++)
		for (uint32_t device = 0; device < DEVICES; device++) {
			uint32_t first = ENABLE | bus << 16 | device << 11, header = 0, other;
			if (!look_at(first, &last_bus, &header) || !(header & MULTIFUNCTION))
				continue;
			for (uint32_t function = 1; function < FUNCTIONS; function++)
				look_at(first | function << 8, &last_bus, &other);
		}
}
