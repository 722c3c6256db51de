"""Answers clients' requests to the registry of functions."""

import uuid

from firstlight.agile import protocol
from firstlight.agile.functions.catalogue import Functions


async def answer(functions: Functions, request: protocol.FunctionRequest) -> protocol.Answer:
    """The answer to a request. Raises Failed."""
    match request:
        case protocol.ListFunctions(name):
            names = [name] if name else functions.names()
            return protocol.Functions([functions.get(each) for each in names])
        case protocol.CallFunction():
            return await _call(functions, request)
    await _change(functions, request)
    known = request.name in functions.names()
    return protocol.Functions([functions.get(request.name)] if known else [])


async def _call(functions: Functions, request: protocol.CallFunction) -> protocol.Answer:
    identity, event = str(uuid.uuid4()), request.event
    protocol.check_json(event)
    if request.later:
        await functions.accept(request.name, event, request.qualifier, request_id=identity)
        return protocol.Done()
    answer, version = await functions.invoke(
        request.name, event, request.qualifier, request_id=identity
    )
    return protocol.Called(
        payload=answer.payload, version=version.version, error=answer.error, log=answer.log_tail,
        cold=answer.cold, init_ns=answer.init_ns, duration_ns=answer.duration_ns,
    )  # fmt: skip


async def _change(functions: Functions, request: protocol.Change) -> None:
    match request:
        case protocol.AddFunction(name, source, settings, alias, owner):
            function = await functions.add(name, source, settings, owner=owner, tries=True)
            if alias:
                await functions.set_alias(name, alias, str(function.published))
        case protocol.UpdateFunction(name, given, settings, alias):
            function = await functions.update(name, given, settings, tries=True)
            if alias:
                await functions.set_alias(name, alias, str(function.published))
        case protocol.ApplyFunction(name, source, settings, owner, tags, concurrency, queue):
            await functions.apply(name, source, settings, owner=owner, tags=tags,
                                  concurrency=concurrency, queue=queue)  # fmt: skip
        case protocol.RemoveFunction(name, version):
            await functions.remove(name, version)
        case protocol.SetAlias(name, alias, version):
            if version:
                await functions.set_alias(name, alias, version)
            else:
                await functions.remove_alias(name, alias)
        case protocol.Reserve(name, concurrency, queue):
            await functions.reserve(name, concurrency, queue)
