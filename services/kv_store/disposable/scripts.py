"""The Lua that keeps the disposable space within its bound. Only commands of Redis 6.2 are used.

deepflow:disposable:value:<key>  a value, which expires by itself
deepflow:disposable:expiry       sorted set: when each value expires, in milliseconds
deepflow:disposable:index        sorted set of all keys, for listing
deepflow:disposable:sizes        hash: bytes of each value
deepflow:disposable:bytes        their sum
"""

SPACE = "deepflow:disposable:"
VALUE = f"{SPACE}value:"
EXPIRY = f"{SPACE}expiry"
INDEX = f"{SPACE}index"
SIZES = f"{SPACE}sizes"
BYTES = f"{SPACE}bytes"
KEYS = (EXPIRY, INDEX, SIZES, BYTES)

# KEYS as above; ARGV[1] = prefix of values.
_FORGET = """
local function forget(key)
  local size = tonumber(redis.call('HGET', KEYS[3], key) or '0')
  redis.call('DEL', ARGV[1] .. key)
  redis.call('ZREM', KEYS[1], key)
  redis.call('ZREM', KEYS[2], key)
  redis.call('HDEL', KEYS[3], key)
  return redis.call('DECRBY', KEYS[4], size)
end
"""

# ARGV: prefix of values, key, value, now, milliseconds to live, most bytes of the space, most keys.
# What expires soonest goes first, and the loop ends: the value itself fits into the space alone.
PUT = (
    _FORGET
    + """
local key, value, now, life = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1000)) do
  forget(old)
end
local bytes = forget(key)
local evicted = 0
while bytes + #key + #value > tonumber(ARGV[6])
    or redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[7]) do
  local first = redis.call('ZRANGE', KEYS[1], 0, 0)[1]
  if not first then
    redis.call('SET', KEYS[4], 0)
    break
  end
  bytes = forget(first)
  evicted = evicted + 1
end
redis.call('SET', ARGV[1] .. key, value, 'PX', life)
redis.call('ZADD', KEYS[1], now + life, key)
redis.call('ZADD', KEYS[2], 0, key)
redis.call('HSET', KEYS[3], key, #key + #value)
redis.call('INCRBY', KEYS[4], #key + #value)
return {evicted}
"""
)

# ARGV: prefix of values, lower and upper bound, most bytes. At least one value is answered.
LIST = """
local answer, bytes = {0}, 0
for _, key in ipairs(redis.call('ZRANGEBYLEX', KEYS[2], ARGV[2], ARGV[3])) do
  local value = redis.call('GET', ARGV[1] .. key)
  if value then
    bytes = bytes + #key + #value
    if #answer > 1 and bytes > tonumber(ARGV[4]) then
      answer[1] = 1
      return answer
    end
    answer[#answer + 1] = key
    answer[#answer + 1] = value
  end
end
return answer
"""
