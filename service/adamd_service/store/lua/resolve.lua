-- Finds out whether a commit whose answer was lost has happened. If it has not, it is fenced, so that it never will.
--
-- KEYS  1 head   2 record of the attempted step   3 fence of the attempt
-- ARGV  1 nonce  2 attempt  3 step  4 seconds that the fence stands
-- Returns {nonce, verdict}: committed | fenced | unknown (so long ago that the record has been collected)
--
-- The first write frees memory: a commit can be resolved in a full store too.
-- A commit that the ACL denied a command halfway may have left a record without moving the head: that is no commit.
local head_key, record_key, fence_key = KEYS[1], KEYS[2], KEYS[3]
local nonce, attempt, step, fence_seconds = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]

local recorded_attempt = redis.call('HGET', record_key, 'attempt')
local head_step = tonumber(redis.call('HGET', head_key, 'step') or '')
local head_moved = head_step and head_step >= step
if head_moved and recorded_attempt == attempt then
  return {nonce, 'committed'}
end
if not recorded_attempt then
  if head_moved then
    return {nonce, 'unknown'}
  end
end
redis.call('DEL', fence_key)
redis.call('SET', fence_key, '1', 'EX', fence_seconds)
return {nonce, 'fenced'}
