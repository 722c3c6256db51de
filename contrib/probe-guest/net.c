/* A virtio network interface, and the first packet: who has the gateway's address, then an echo
 * request to it. What else arrives meanwhile is dropped. */
#include "guest.h"

enum { MAC_FEATURE = 1 << 5, RECEIVE = 0, SEND = 1, ATTEMPTS = 5 };
enum { LEGACY_HEADER = 10, HEADER = 12, ETHERNET = 14, SHORTEST = 60 };
/* Firecracker reads its tap only once there is room for the longest packet that can be. */
enum { LONGEST = 66 << 10 };
enum { ARP = 0x0806, IP = 0x0800, ICMP = 1, ECHO = 8, ECHO_REPLY = 0 };
enum { ARP_REPLY_FROM = 14, IP_FROM = 12, IP_TO = 16, IP_HEADER = 20, IP_LENGTH = 28 };

static struct virtio device;
static struct queue received, sent;
static uint32_t before; /* bytes of the virtio header before each frame */
static uint8_t mac[6] = {2, 0, 0, 0, 0, 1}, peer[6];
static uint8_t in[LONGEST], out[HEADER + SHORTEST];

static void put16(uint8_t *at, uint32_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

static void put32(uint8_t *at, uint32_t value)
{
	put16(at, value >> 16);
	put16(at + 2, value & 0xffff);
}

static uint32_t get16(const uint8_t *at)
{
	return (uint32_t)at[0] << 8 | at[1];
}

static uint32_t get32(const uint8_t *at)
{
	return get16(at) << 16 | get16(at + 2);
}

static void copy(uint8_t *to, const uint8_t *from, uint32_t count)
{
	while (count--)
		*to++ = *from++;
}

static void receive(void)
{
	virtio_post(&device, &received, &(struct buffer){in, LONGEST, true}, 1);
}

bool net_begin(void)
{
	if (!virtio_find(NETWORK, &device))
		return false;
	before = device.legacy ? LEGACY_HEADER : HEADER;
	if (virtio_begin(&device, MAC_FEATURE, "net") & MAC_FEATURE)
		for (unsigned i = 0; i < sizeof mac; i++)
			mac[i] = device.config[i];
	virtio_queue(&device, RECEIVE, &received, "net");
	virtio_queue(&device, SEND, &sent, "net");
	virtio_ready(&device);
	receive();
	return true;
}

/* The frame to send, empty, with its ethernet header; what follows that. */
static uint8_t *frame(const uint8_t *to, uint32_t type)
{
	for (uint32_t i = 0; i < sizeof out; i++)
		out[i] = 0;
	copy(out + before, to, 6);
	copy(out + before + 6, mac, 6);
	put16(out + before + 12, type);
	return out + before + ETHERNET;
}

static void transmit(void)
{
	virtio_post(&device, &sent, &(struct buffer){out, before + SHORTEST, false}, 1);
	if (virtio_wait(&sent, PATIENCE) < 0)
		fail("packet", "the device does not send");
}

static uint32_t checksum(const uint8_t *at, uint32_t length)
{
	uint32_t sum = 0;
	for (uint32_t i = 0; i < length; i += 2)
		sum += get16(at + i);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return ~sum & 0xffff;
}

static void ask_for(uint32_t own, uint32_t gateway)
{
	static const uint8_t all[6] = {255, 255, 255, 255, 255, 255};
	uint8_t *arp = frame(all, ARP);
	put32(arp, 0x00010800); /* ethernet, IPv4 */
	put32(arp + 4, 0x06040001); /* of 6 and 4 bytes, a request */
	copy(arp + 8, mac, 6);
	put32(arp + ARP_REPLY_FROM, own);
	put32(arp + 24, gateway);
	transmit();
}

static void echo_to(uint32_t own, uint32_t gateway)
{
	uint8_t *ip = frame(peer, IP);
	put16(ip, 0x4500);
	put16(ip + 2, IP_LENGTH);
	ip[8] = 64; /* hops */
	ip[9] = ICMP;
	put32(ip + IP_FROM, own);
	put32(ip + IP_TO, gateway);
	put16(ip + 10, checksum(ip, IP_HEADER));
	ip[IP_HEADER] = ECHO;
	put16(ip + IP_HEADER + 2, checksum(ip + IP_HEADER, IP_LENGTH - IP_HEADER));
	transmit();
}

static bool is_arp_reply(const uint8_t *from_device, uint32_t gateway)
{
	const uint8_t *arp = from_device + ETHERNET;
	if (get16(from_device + 12) != ARP || get16(arp + 6) != 2 ||
	    get32(arp + ARP_REPLY_FROM) != gateway)
		return false;
	copy(peer, arp + 8, 6);
	return true;
}

static bool is_echo_reply(const uint8_t *from_device, uint32_t gateway)
{
	const uint8_t *ip = from_device + ETHERNET;
	return get16(from_device + 12) == IP && ip[0] == 0x45 && ip[9] == ICMP &&
	       get32(ip + IP_FROM) == gateway && ip[IP_HEADER] == ECHO_REPLY;
}

static bool heard(bool (*is_it)(const uint8_t *, uint32_t), uint32_t gateway)
{
	uint64_t start = now();
	while (now() - start < PATIENCE) {
		int64_t length = virtio_wait(&received, PATIENCE);
		if (length < 0)
			return false;
		bool found = length >= before + ETHERNET + IP_LENGTH && is_it(in + before, gateway);
		receive();
		if (found)
			return true;
	}
	return false;
}

static bool answered(void (*ask)(uint32_t, uint32_t), bool (*is_it)(const uint8_t *, uint32_t),
		     uint32_t own, uint32_t gateway)
{
	for (unsigned attempt = 0; attempt < ATTEMPTS; attempt++) {
		ask(own, gateway);
		if (heard(is_it, gateway))
			return true;
	}
	return false;
}

void net_reach(uint32_t own, uint32_t gateway)
{
	if (!answered(ask_for, is_arp_reply, own, gateway))
		fail("packet", "the gateway does not say where it is (ARP)");
	if (!answered(echo_to, is_echo_reply, own, gateway))
		fail("packet", "the gateway does not answer an echo request");
}
