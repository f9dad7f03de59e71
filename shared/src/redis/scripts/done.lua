-- Take an entry out: its job has ended, waits again, or another entry stands for it. Only commands that
-- shrink, so that a Redis without memory can still drain.
-- KEYS: work stream, index, backlog.  ARGV: group, job, entry or '' for the one the index knows, channel to
-- tell of the free place when others wait for one.
local known = redis.call('HGET', KEYS[2], ARGV[2])
local entry = ARGV[3] ~= '' and ARGV[3] or known
if not entry then return 0 end
redis.pcall('XACK', KEYS[1], ARGV[1], entry)
redis.call('XDEL', KEYS[1], entry)
if known == entry then redis.call('HDEL', KEYS[2], ARGV[2]) end
if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('PUBLISH', ARGV[4], '') end
return 1
