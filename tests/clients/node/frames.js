// What a stream may say, and how a follower tells it: as the server said it.
'use strict';

// Somebody who listens to an EventSource must name what to. An event that was forgotten here is a hole in what
// the test gets.
exports.TYPES = [
  'job.queued', 'job.started', 'session.ready', 'text.delta', 'thinking.delta', 'message.withdrawn', 'tool.started',
  'tool.finished', 'message', 'retrying', 'resync', 'job.completed', 'job.failed', 'job.cancelled',
];

// A client's last id stays with it over events that have none.
exports.frame = ({ type, data, lastEventId }) => {
  const id = JSON.parse(data).id === undefined ? '' : `id: ${lastEventId}\n`;
  return `${id}event: ${type}\ndata: ${data}\n\n`;
};
