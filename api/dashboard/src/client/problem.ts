/** What the API says of a request that failed (RFC 9457), or what kept it from answering at all. */
export interface FieldProblem {
  pointer: string;
  detail: string;
}

export class Problem extends Error {
  override name = 'Problem';

  constructor(
    /** The status; 0 where no answer came. */
    readonly status: number,
    readonly code: string,
    readonly detail: string,
    readonly requestId: string | null = null,
    readonly errors: FieldProblem[] = [],
    readonly retryAfterSecs: number | null = null,
  ) {
    super(detail);
  }

  static unreachable(): Problem {
    return new Problem(0, 'unreachable', 'The server cannot be reached. Is it running, and is your network up?');
  }

  /** Read the body of a failed answer, which may be that of a proxy in between. */
  static of(response: Response, body: unknown): Problem {
    const said = isRecord(body) ? body : {};
    const errors = Array.isArray(said.errors) ? said.errors.filter(isFieldProblem) : [];
    const retryAfter = Number(response.headers.get('retry-after'));
    return new Problem(
      response.status,
      text(said.code) ?? 'unknown',
      text(said.detail) ?? `The server answered with the status ${response.status}.`,
      text(said.request_id) ?? response.headers.get('x-request-id'),
      errors,
      retryAfter > 0 ? retryAfter : null,
    );
  }

  static from(error: unknown): Problem {
    if (error instanceof Problem) return error;
    return new Problem(0, 'defect', error instanceof Error ? error.message : String(error));
  }
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function text(value: unknown): string | null {
  return typeof value === 'string' && value !== '' ? value : null;
}

function isFieldProblem(value: unknown): value is FieldProblem {
  return isRecord(value) && typeof value.pointer === 'string' && typeof value.detail === 'string';
}
