/* Runs commands in nft's own language by libnftables, each request as one transaction. */
#include "../common/process.h"
#include "net.h"

#include <errno.h>
#include <nftables/libnftables.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static void free_context(struct nft_ctx **context)
{
	if (*context)
		nft_ctx_free(*context);
}

int net_rules(const char *commands, int *output, const char **step)
{
	struct nft_ctx *context __attribute__((cleanup(free_context))) =
		nft_ctx_new(NFT_CTX_DEFAULT);
	*step = "open nftables";
	if (!context || nft_ctx_buffer_output(context) || nft_ctx_buffer_error(context))
		return -ENOMEM;
	nft_ctx_output_set_flags(context, NFT_CTX_OUTPUT_JSON | NFT_CTX_OUTPUT_HANDLE);
	int refused = nft_run_cmd_from_buffer(context, commands);
	*step = "store nft's answer";
	*output = memfd_create("nft", MFD_CLOEXEC);
	if (*output < 0)
		return -errno;
	const char *answer =
		refused ? nft_ctx_get_error_buffer(context) : nft_ctx_get_output_buffer(context);
	int error = answer ? process_write_all(*output, answer, strlen(answer)) : 0;
	*step = "change the rules";
	return error ? error : refused ? -EINVAL : 0;
}
