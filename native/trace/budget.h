/* The CPU time that watch may cost: it is earned, and spent on what was traced. */
#ifndef FIRSTLIGHT_BUDGET_H
#define FIRSTLIGHT_BUDGET_H

extern struct budget {
	unsigned long
		one_in; /* windows of which one is traced, whatever it costs; 0: by the credit */
	long long credit, at; /* ns of CPU time, and when it was counted */
} budget;

/* Measures what a call costs while the programs are attached. Returns 0 or a negative errno, with the
 * reason in tracer_failure. */
int budget_open(unsigned long one_in, unsigned long millionths);

/* Counts what was earned and spent until now. */
void budget_count(long long now);

/* Whether so much is owed that what is being traced must stop. */
int budget_is_overdrawn(void);

#endif
