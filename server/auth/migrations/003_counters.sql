-- Counters are updated far more often than they are swept: without these indexes an update stays
-- within its page.
drop index auth.rate_limits_due_at;
drop index auth.guesses_last_at;
