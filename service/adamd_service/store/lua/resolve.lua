-- Finds out what became of a commit without an answer; fences it where it has not happened, so that it never will.
--
-- KEYS  1 head   2 record of the attempted step   3 fence
-- ARGV  1 nonce  2 attempt  3 step  4 seconds that the fence stands
-- Returns {nonce, verdict}: committed | fenced | unknown (the record is collected already: long ago)
--
-- The first write frees memory: what became of a commit can be settled in a full store too.
-- A commit that was denied a command in its middle (ACL) may have left a record without moving the head: no commit.
local attempt = redis.call('HGET', KEYS[2], 'attempt')
local step = tonumber(redis.call('HGET', KEYS[1], 'step') or '')
local moved = step and step >= tonumber(ARGV[3])
if moved and attempt == ARGV[2] then
  return {ARGV[1], 'committed'}
end
if not attempt then
  if moved then
    return {ARGV[1], 'unknown'}
  end
end
redis.call('DEL', KEYS[3])
redis.call('SET', KEYS[3], '1', 'EX', ARGV[4])
return {ARGV[1], 'fenced'}
