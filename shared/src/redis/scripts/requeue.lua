-- Ring again for a job that was rung for before: the old entry goes, whoever holds it.
-- KEYS: work stream, index.  ARGV: group, job, entry to replace or ''.  Answers the entry's id.
local current = redis.call('HGET', KEYS[2], ARGV[2])
local old = ARGV[3] ~= '' and ARGV[3] or current
redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if old then
  redis.call('XACK', KEYS[1], ARGV[1], old)
  redis.call('XDEL', KEYS[1], old)
end
if current and current ~= old then return current end
local id = redis.call('XADD', KEYS[1], '*', 'j', ARGV[2])
redis.call('HSET', KEYS[2], ARGV[2], id)
return id
