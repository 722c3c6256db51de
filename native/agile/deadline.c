/* How long the event loop may wait. Only sandboxes are made at an exact time: waking up for every
 * other deadline would cost one round of the loop each.
 */
#include "common/clock.h"
#include "node.h"

enum { MOMENT = 1000000 /* ns */ };

int64_t deadline_timeout(void)
{
	const int64_t others[] = {pending_next(),
				  rest_next(),
				  reuse_next(),
				  ahead_next(),
				  manager_next(),
				  node.accepts_at ? node.accepts_at : INT64_MAX,
				  node.sends_at ? node.sends_at : INT64_MAX};
	int64_t fill = waiting_next(), until = INT64_MAX;
	for (size_t i = 0; i < sizeof others / sizeof *others; i++)
		if (others[i] < until)
			until = others[i];
	if (until == INT64_MAX && fill == INT64_MAX)
		return -1;
	int64_t now = clock_now();
	if (until != INT64_MAX)
		until = now + (until > now ? (until - now + MOMENT - 1) / MOMENT * MOMENT : 0);
	if (fill < until)
		until = fill;
	return until > now ? until - now : 0;
}
