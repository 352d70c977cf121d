-- Unlinks a part of what one entry of the garbage list names, if it is garbage here. The list was read earlier, perhaps
-- on another connection, and a failover may have brought back a head that still names it.
--
-- KEYS  1 head   2 garbage   3 pending contributions   4… records to compare, then the keys to unlink
-- ARGV  1 nonce  2 the entry, as the list has it  3 kind: snapshot | records | contribution | rounds | everything
--         | damaged
--       4 id of the snapshot, step of the last record, or name and attempt of the contribution
--       5 what becomes of the entry: "" (it stays: there is more to unlink), "done", or the entry that replaces it
--       6… attempt of each record to compare
-- Returns {nonce, verdict}: unlinked | named (the head may need it) | gone (the list has no such entry)
--
-- The script that drops a name puts the entry into the list in the same move. So an entry in this list proves that this
-- history dropped it. The head is compared all the same.
local head_key, garbage_key, pending_key = KEYS[1], KEYS[2], KEYS[3]
local nonce, entry, kind, name, outcome = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local keys_before_records, args_before_attempts = 3, 5
local record_count = #ARGV - args_before_attempts

if not redis.call('LPOS', garbage_key, entry) then
  return {nonce, 'gone'}
end
if redis.call('EXISTS', head_key) == 1 then
  local snapshots_text, log_first = unpack(redis.call('HMGET', head_key, 'snapshots', 'log_first'))
  local first, last = tonumber(log_first), tonumber(name)
  local member, attempt = string.match(name, '^(%S+) (%S+)$')
  local waits = member and redis.call('HGET', pending_key, member) or ''
  local unnamed = {
    damaged = #KEYS == keys_before_records,
    snapshot = snapshots_text and not string.find(snapshots_text, '"' .. name .. '"', 1, true),
    records = first and last and last < first,
    contribution = member and not string.find(waits, '"attempt":"' .. attempt .. '"', 1, true),
  }
  if not unnamed[kind] then
    return {nonce, 'named'}
  end
end
for i = 1, record_count do
  local attempt = redis.call('HGET', KEYS[keys_before_records + i], 'attempt')
  if attempt and attempt ~= ARGV[args_before_attempts + i] then
    return {nonce, 'named'}
  end
end

for i = keys_before_records + record_count + 1, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
if outcome ~= '' then
  redis.call('LREM', garbage_key, 1, entry)
  if outcome ~= 'done' then
    redis.call('RPUSH', garbage_key, outcome)
  end
end
return {nonce, 'unlinked'}
