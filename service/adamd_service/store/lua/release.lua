-- Gives back what a session claimed in the index, if it is still that session's.
--
-- KEYS  1 names   2 sessions   3 the name's former owner   4 idempotency   5 sign that the creation is under way
-- ARGV  1 nonce  2 id  3 name ("" if none)  4 seconds that the name is remembered as deleted (0: not)  5 digest (or "")
-- Returns {nonce, "released"}
--
-- Everything that can fail stands before the first write.
local mine = ARGV[3] ~= '' and redis.call('HGET', KEYS[1], ARGV[3]) == ARGV[2]
local keyed = ARGV[5] ~= '' and redis.call('GET', KEYS[4]) == ARGV[5] .. ' ' .. ARGV[2]
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[5])
if mine then
  redis.call('HDEL', KEYS[1], ARGV[3])
  if ARGV[4] ~= '0' then
    redis.call('SET', KEYS[3], ARGV[2], 'EX', ARGV[4])
  end
end
if keyed then
  redis.call('DEL', KEYS[4])
end
return {ARGV[1], 'released'}
