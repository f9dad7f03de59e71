-- Take an entry out: its job has ended, or another entry stands for it. Only commands that shrink, so
-- that a Redis without memory can still drain.
-- KEYS: work stream, index.  ARGV: group, job, entry or '' for the one the index knows.
local known = redis.call('HGET', KEYS[2], ARGV[2])
local entry = ARGV[3] ~= '' and ARGV[3] or known
if not entry then return 0 end
redis.pcall('XACK', KEYS[1], ARGV[1], entry)
redis.call('XDEL', KEYS[1], entry)
if known == entry then redis.call('HDEL', KEYS[2], ARGV[2]) end
return 1
