"""The Lua of the counters: a whole batch is one indivisible step. Only commands of Redis 6.2.

Limits and slots are disposable: they know no generation marker, and every key of theirs expires.
Usage is a record: without the marker nothing is added, and nothing is read.
"""

# KEYS: a hash (window, used) a limit. ARGV: milliseconds of a window, then for each key
# limit, charge, need, ahead. Answers: window, milliseconds left of it, then for each key
# granted, remaining.
TAKE = """
local now, length = redis.call('TIME'), tonumber(ARGV[1])
local ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local window = string.format('%d', math.floor(ms / length))
local answer = {'ok', window, string.format('%d', length - ms % length)}
for i, key in ipairs(KEYS) do
  local limit, charge = tonumber(ARGV[4 * i - 2]), tonumber(ARGV[4 * i - 1])
  local need, ahead = tonumber(ARGV[4 * i]), tonumber(ARGV[4 * i + 1])
  local found = redis.call('HMGET', key, 'window', 'used')
  local used = charge
  if found[1] == window then used = used + tonumber(found[2]) end
  local left = math.max(0, limit - used)
  local granted = math.min(need, left)
  granted = granted + math.min(ahead, math.floor((left - granted) / 16))
  used = used + granted
  redis.call('HSET', key, 'window', window, 'used', string.format('%d', used))
  redis.call('PEXPIRE', key, 2 * length)
  answer[#answer + 1] = string.format('%d', granted)
  answer[#answer + 1] = string.format('%d', math.max(0, limit - used))
end
return answer
"""

# KEYS: a hash (holder -> "count:expires at") a limit. ARGV: holder, milliseconds of a lease,
# milliseconds of the longest lease, then for each key limit, need, ahead. Answers: held each.
HOLD = """
local now, me, lease = redis.call('TIME'), ARGV[1], tonumber(ARGV[2])
local ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local answer = {'ok'}
for i, key in ipairs(KEYS) do
  local limit, need = tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
  local ahead = tonumber(ARGV[3 * i + 3])
  local others, all = 0, redis.call('HGETALL', key)
  for j = 1, #all, 2 do
    local count, expires = string.match(all[j + 1], '^(%d+):(%d+)$')
    if tonumber(expires) <= ms then
      redis.call('HDEL', key, all[j])
    elseif all[j] ~= me then
      others = others + tonumber(count)
    end
  end
  local left = math.max(0, limit - others)
  local held = math.min(need, left)
  held = held + math.min(ahead, math.floor((left - held) / 4))
  if held > 0 then
    redis.call('HSET', key, me, string.format('%d:%d', held, ms + lease))
    redis.call('PEXPIRE', key, ARGV[3])
  else
    redis.call('HDEL', key, me)
  end
  answer[#answer + 1] = string.format('%d', held)
end
return answer
"""

# KEYS: marker, hash of all usage, last batch of the reporter. ARGV: batch, seconds that the number
# of the last batch is kept, most fields, then field and amount each.
ADD_USAGE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {'no-generation'} end
local last = tonumber(redis.call('GET', KEYS[3]) or '0')
if tonumber(ARGV[1]) <= last then return {'ok'} end
if redis.call('HLEN', KEYS[2]) + (#ARGV - 3) / 2 > tonumber(ARGV[3]) then
  return {'full'}
end
for i = 4, #ARGV, 2 do redis.call('HINCRBY', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('SET', KEYS[3], ARGV[1], 'EX', ARGV[2])
return {'ok'}
"""

LIST_USAGE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {'no-generation'} end
local answer = redis.call('HGETALL', KEYS[2])
table.insert(answer, 1, 'ok')
return answer
"""
