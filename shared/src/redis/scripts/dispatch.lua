-- Ring for a job that waits, if there is a place for it: there are as many as the workers have slots, and
-- while others wait for one they are handed out in order, by the leader alone. Ringing twice rings once.
-- KEYS: work stream, index, slots, backlog.  ARGV: group, job, '1' when others go first.
-- Answers 1 when it is rung for, 0 when it has to wait for a place.
if redis.call('HGET', KEYS[2], ARGV[2]) then return 1 end
if ARGV[3] == '1' and redis.call('EXISTS', KEYS[4]) == 1 then return 0 end
if redis.call('XLEN', KEYS[1]) >= tonumber(redis.call('GET', KEYS[3]) or 0) then return 0 end
-- From 0, never from $: nothing can fall between the stream and its group.
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM') end
redis.call('HSET', KEYS[2], ARGV[2], redis.call('XADD', KEYS[1], '*', 'j', ARGV[2]))
return 1
