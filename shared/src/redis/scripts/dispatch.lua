-- Ring for a job that waits for the first time. Calling it twice rings once.
-- KEYS: work stream, index.  ARGV: group, job.  Answers the entry's id.
local known = redis.call('HGET', KEYS[2], ARGV[2])
if known then return known end
-- From 0, never from $: nothing can fall between the stream and its group.
redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
local id = redis.call('XADD', KEYS[1], '*', 'j', ARGV[2])
redis.call('HSET', KEYS[2], ARGV[2], id)
return id
