-- Take out what a worker heard that is no more, and the worker: its place in the group goes with its last
-- entry, never before (deleting it would drop what it heard).
-- KEYS: work stream, index.  ARGV: group, worker, the most entries to take out.
-- Answers the jobs whose entries are gone.
local jobs = {}
local heard = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[3], ARGV[2])
-- Without the stream or its group there is nothing to forget.
if heard.err then return jobs end
for _, pending in ipairs(heard) do
  local id = pending[1]
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  redis.call('XACK', KEYS[1], ARGV[1], id)
  redis.call('XDEL', KEYS[1], id)
  if entry then
    local job = entry[2][2]
    if redis.call('HGET', KEYS[2], job) == id then redis.call('HDEL', KEYS[2], job) end
    jobs[#jobs + 1] = job
  end
end
if #heard < tonumber(ARGV[3]) then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2]) end
return jobs
