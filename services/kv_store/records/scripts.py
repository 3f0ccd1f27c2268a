"""The Lua that Redis runs: each change is checked and made in one indivisible step.

KEYS[1] is always the generation marker: without it no script reads or writes. Every answer begins
with a word that says how it went. Only commands of Redis 6.2 are used.
"""

_MARKER = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {'no-generation'} end
"""

# KEYS[4] = highest fencing token; ARGV[1], ARGV[2] = lease name and token of the writer.
_FENCE = """
if ARGV[1] ~= '' then
  local highest = redis.call('GET', KEYS[4]) or '0'
  if highest ~= ARGV[2] then return {'stale', highest} end
end
"""

GET = (
    _MARKER
    + """
local found = redis.call('HMGET', KEYS[2], 'value', 'version')
if found[2] then return {'ok', found[1], found[2]} end
if redis.call('ZSCORE', KEYS[3], ARGV[1]) then return {'damaged', ARGV[1]} end
return {'absent'}
"""
)

PUT = (
    _MARKER
    + _FENCE
    + """
local key, value, expected = ARGV[3], ARGV[4], ARGV[5]
local version = tonumber(redis.call('HGET', KEYS[2], 'version') or '0')
if expected ~= '' and version ~= tonumber(expected) then
  if version == tonumber(expected) + 1 and redis.call('HGET', KEYS[2], 'value') == value then
    return {'ok', version}
  end
  return {'conflict', version}
end
redis.call('HSET', KEYS[2], 'value', value, 'version', version + 1)
redis.call('ZADD', KEYS[3], 0, key)
return {'ok', version + 1}
"""
)

DELETE = (
    _MARKER
    + _FENCE
    + """
redis.call('ZREM', KEYS[3], ARGV[3])
return {'ok', redis.call('DEL', KEYS[2])}
"""
)

# ARGV: lower and upper bound, prefix of record hashes, most bytes.
LIST = (
    _MARKER
    + """
local answer, bytes = {'ok', redis.call('GET', KEYS[1])}, 0
for _, key in ipairs(redis.call('ZRANGEBYLEX', KEYS[2], ARGV[1], ARGV[2])) do
  local found = redis.call('HMGET', ARGV[3] .. key, 'value', 'version')
  if not found[2] then return {'damaged', key} end
  bytes = bytes + #key + #found[1]
  if bytes > tonumber(ARGV[4]) then return {'too-large'} end
  answer[#answer + 1] = key
  answer[#answer + 1] = found[1]
  answer[#answer + 1] = found[2]
end
return answer
"""
)

# ARGV: new generation, whether it may be made, pattern of every key of the record space.
GENERATION = """
local found = redis.call('GET', KEYS[1])
if found then return {'ok', found} end
if ARGV[2] ~= '1' then return {'no-generation'} end
local cursor = '0'
repeat
  local page = redis.call('SCAN', cursor, 'MATCH', ARGV[3], 'COUNT', 1000)
  if #page[2] > 0 then return {'not-new'} end
  cursor = page[1]
until cursor == '0'
redis.call('SET', KEYS[1], ARGV[1])
return {'ok', ARGV[1]}
"""

# KEYS: marker, lease, highest token; ARGV: holder, milliseconds to live, highest token known to it.
# Records restored from an older copy have forgotten tokens: what is given out then leaves a gap, so
# that nobody takes it for the one after its own.
ACQUIRE = (
    _MARKER
    + """
local holder = redis.call('HGET', KEYS[2], 'holder')
if holder and holder ~= ARGV[1] then
  return {'held', holder, redis.call('HGET', KEYS[2], 'token'), redis.call('PTTL', KEYS[2])}
end
local known = tonumber(ARGV[3])
if known > tonumber(redis.call('GET', KEYS[3]) or '0') then
  redis.call('SET', KEYS[3], string.format('%d', known + 1))
  holder = false
end
if not holder then
  redis.call('HSET', KEYS[2], 'holder', ARGV[1], 'token', redis.call('INCR', KEYS[3]))
end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return {'ok', ARGV[1], redis.call('HGET', KEYS[2], 'token'), tonumber(ARGV[2])}
"""
)

RELEASE = (
    _MARKER
    + """
local held = redis.call('HMGET', KEYS[2], 'holder', 'token')
if held[1] == ARGV[1] and held[2] == ARGV[2] then redis.call('DEL', KEYS[2]) end
return {'ok'}
"""
)
